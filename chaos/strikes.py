"""Kill, terminate or stop the parts of a running stack."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterable

from chaos.cells import STOPPED, PairStrike, Strike
from everyrun.embedded.stack import Stack

_READY_WITHIN = 60.0


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


async def ready_pid(stack: Stack, name: str) -> int:
    """Wait until a part is ready, and return its process id. Raises TimeoutError after a minute."""
    deadline = time.monotonic() + _READY_WITHIN
    while True:
        pid = stack.part(name).pid
        if pid is not None and stack.part(name).state == "ready":
            return pid
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name} is not ready after {_READY_WITHIN:.0f} s")
        await asyncio.sleep(0.02)


async def strike(stack: Stack, name: str, how: str) -> None:
    """Strike a part: ``kill``, ``term`` (Postgres: fast shutdown), or ``stop`` for a while. The stack restarts it."""
    pid = await ready_pid(stack, name)
    if how == "stop":
        _send(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(STOPPED)
        finally:
            _send(pid, signal.SIGCONT)
    elif how == "kill":
        _send(pid, signal.SIGKILL)
    else:
        _send(pid, signal.SIGINT if name == "postgres" else signal.SIGTERM)
    if how != "stop":
        while stack.part(name).pid == pid:
            await asyncio.sleep(0.02)


async def strike_pair(stack: Stack, pair: PairStrike) -> float:
    """Kill both parts; return the seconds between the two kills.

    The second part is killed in any state: the death of the first may have ended it already.
    """
    pids: dict[str, int] = {}
    killed = []
    for name, wait in ((pair.first, pair.gap), (pair.second, 0.0)):
        while (pid := stack.part(name).pid) is None:
            await asyncio.sleep(0.02)
        _send(pid, signal.SIGKILL)
        pids[name] = pid
        killed.append(time.monotonic())
        await asyncio.sleep(wait)
    while any(stack.part(name).pid == pid for name, pid in pids.items()):
        await asyncio.sleep(0.02)
    return killed[1] - killed[0]


async def strike_all(stack: Stack, strikes: Iterable[Strike]) -> None:
    """Make the strikes one after another, each at its time."""
    for given in strikes:
        await asyncio.sleep(given.after)
        await strike(stack, given.part, given.how)


async def all_ready(stack: Stack) -> None:
    """Wait until every part is ready. Raises TimeoutError."""
    for name in stack.names:
        await ready_pid(stack, name)
