"""A rebuild in several processes: each has a share of the partitions, with both sides of its batches.

Each share is an engine of its own; what they have applied is in the schema's ``applied_offsets``, as ever.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import NamedTuple

from everyrun.errors import EveryrunError
from everyrun.log.reading import Partition
from everyrun.log.topics import LogIdentity
from everyrun.memory import reduce_garbage_collection
from everyrun.redact import describe
from everyrun.replay.rebuild.engine import LANES, Engine, Offsets, tables_pool
from everyrun.settings import Settings

_SPAWN = multiprocessing.get_context("spawn")
#: How often a process looks whether the one that started it is still there, in seconds.
_LOOKS_EVERY = 0.5


class ShareError(EveryrunError):
    """A process of the rebuild ended before its share was done; the text says why."""


class Share(NamedTuple):
    """What one process applies: from ``start`` up to ``end``, to the tables of ``schema``."""

    settings: Settings
    schema: str
    identity: LogIdentity
    start: dict[Partition, int]
    end: dict[Partition, int]


def split(end: Offsets, processes: int) -> list[dict[Partition, int]]:
    """The ends of so many shares: a partition of every topic is in the same one."""
    numbers = sorted({partition for _, partition in end})
    of = {partition: place % processes for place, partition in enumerate(numbers)}
    shares = [{position: offset for position, offset in end.items() if of[position[1]] == n} for n in range(processes)]
    return [share for share in shares if share]


async def apply_shares(shares: Sequence[Share]) -> None:
    """Apply the first here and each of the others in a process of its own; return when all are done.

    The processes end with this one, however it ends. Raises ShareError, or what ``Engine.run`` raises.
    """
    if not shares:
        return
    first, *others = shares
    with _processes(others) as started:
        here = asyncio.create_task(_apply(first))
        tasks = [here, *(asyncio.create_task(_ended(process, said)) for process, said in started)]
        try:
            for task in asyncio.as_completed(tasks):
                await task
        finally:
            here.cancel()
            for process, _ in started:
                process.terminate()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def _processes(shares: Sequence[Share]) -> Iterator[list[tuple[SpawnProcess, Connection]]]:
    started = []
    try:
        for share in shares:
            ours, theirs = _SPAWN.Pipe(duplex=False)
            process = _SPAWN.Process(target=_work, args=(share, os.getpid(), theirs))
            process.start()
            theirs.close()
            started.append((process, ours))
        yield started
    finally:
        for process, said in started:
            process.terminate()
            process.join()
            said.close()


async def _ended(process: SpawnProcess, said: Connection) -> None:
    await asyncio.to_thread(process.join)
    if process.exitcode != 0:
        try:
            why = said.recv() if said.poll() else f"exit code {process.exitcode}"
        except EOFError:
            why = f"exit code {process.exitcode}"
        raise ShareError(f"a process of the rebuild ended: {why}. What is done stays so")


def _work(share: Share, parent: int, says: Connection) -> None:
    """A process: its share, unless the process that started it is gone."""

    async def work() -> None:
        looking = asyncio.create_task(_look(parent))
        try:
            await _apply(share)
        finally:
            looking.cancel()

    # Ctrl-C reaches every process of a terminal; the one that started this one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reduce_garbage_collection()
    try:
        asyncio.run(work())
    except Exception as error:
        says.send(describe(error))
        raise SystemExit(1) from None


async def _look(parent: int) -> None:
    while os.getppid() == parent:
        await asyncio.sleep(_LOOKS_EVERY)
    os._exit(1)


async def _apply(share: Share) -> None:
    async with tables_pool(share.settings, share.schema, LANES + 1) as pool:
        engine = Engine(share.settings, pool, share.identity)
        await engine.run(share.start, share.end)
