"""Doing harm to the parts of a running stack."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterable

from chaos.cells import STOPPED, Strike, Volley
from everyrun.embedded.stack import Stack

_BACK_WITHIN = 60.0


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


async def running(stack: Stack, name: str) -> int:
    """The process of a part, waited for where it is just being started."""
    deadline = time.monotonic() + _BACK_WITHIN
    while True:
        pid = stack.part(name).pid
        if pid is not None and stack.part(name).state == "ready":
            return pid
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name} is not back after {_BACK_WITHIN:.0f} s")
        await asyncio.sleep(0.02)


async def strike(stack: Stack, name: str, how: str) -> None:
    """``kill``, ``term`` (to Postgres: its fast shutdown), or ``stop`` for a while; the stack starts it again."""
    pid = await running(stack, name)
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


async def strike_pair(stack: Stack, volley: Volley) -> float:
    """Kill both parts; return the seconds between the two kills.

    The second is killed in whatever state it is: the death of the first may have ended it already.
    """
    pids: dict[str, int] = {}
    killed = []
    for name, wait in ((volley.first, volley.gap), (volley.second, 0.0)):
        while (pid := stack.part(name).pid) is None:
            await asyncio.sleep(0.02)
        _send(pid, signal.SIGKILL)
        pids[name] = pid
        killed.append(time.monotonic())
        await asyncio.sleep(wait)
    while any(stack.part(name).pid == pid for name, pid in pids.items()):
        await asyncio.sleep(0.02)
    return killed[1] - killed[0]


async def strike_all(stack: Stack, strikes: Iterable[Strike]) -> int:
    """One after another, each at its time; how many there were."""
    done = 0
    for given in strikes:
        await asyncio.sleep(given.after)
        await strike(stack, given.part, given.how)
        done += 1
    return done


async def all_ready(stack: Stack) -> None:
    """Return when every part is ready."""
    for name in stack.names:
        await running(stack, name)
