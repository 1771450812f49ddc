"""Rebuild in several processes, each with a share of the partitions.

A share has the same partitions of every topic, so a batch and its runs are in the same share. Each process runs an
engine of its own; all of them move the same ``applied_offsets``.
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

from everyrun.log.reading import Partition
from everyrun.log.topics import LogIdentity
from everyrun.memory import reduce_garbage_collection
from everyrun.redact import describe
from everyrun.replay.errors import RebuildError
from everyrun.replay.rebuild.engine import LANES, Engine, Offsets, tables_pool
from everyrun.settings import Settings

_SPAWN = multiprocessing.get_context("spawn")
#: Seconds between two checks that the parent process is alive.
_PARENT_CHECK_SECONDS = 0.5


class PartitionShare(NamedTuple):
    """The work of one process: apply the records from ``start`` up to ``end`` to the tables of ``schema``."""

    settings: Settings
    schema: str
    identity: LogIdentity
    start: dict[Partition, int]
    end: dict[Partition, int]


def split_partitions(end: Offsets, processes: int) -> list[dict[Partition, int]]:
    """Split the end offsets into one share per process; partitions of the same number share a process."""
    numbers = sorted({partition for _, partition in end})
    process_of = {partition: index % processes for index, partition in enumerate(numbers)}
    shares = [
        {position: offset for position, offset in end.items() if process_of[position[1]] == process}
        for process in range(processes)
    ]
    return [share for share in shares if share]


async def apply_shares(shares: Sequence[PartitionShare]) -> None:
    """Apply the first share in this process and each other one in a process of its own; return when all are done.

    The processes end when this one ends, even if it is killed. Raises RebuildError if one of them fails, or what
    ``Engine.run`` raises.
    """
    if not shares:
        return
    first, *others = shares
    with _processes(others) as started:
        here = asyncio.create_task(_apply(first))
        tasks = [here, *(asyncio.create_task(_ended(process, errors)) for process, errors in started)]
        try:
            for task in asyncio.as_completed(tasks):
                await task
        finally:
            here.cancel()
            for process, _ in started:
                process.terminate()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def _processes(shares: Sequence[PartitionShare]) -> Iterator[list[tuple[SpawnProcess, Connection]]]:
    """Start a process per share, each with the pipe that brings its error; end them after the block."""
    started = []
    try:
        for share in shares:
            receiver, sender = _SPAWN.Pipe(duplex=False)
            process = _SPAWN.Process(target=_work, args=(share, os.getpid(), sender))
            process.start()
            sender.close()
            started.append((process, receiver))
        yield started
    finally:
        for process, receiver in started:
            process.terminate()
            process.join()
            receiver.close()


async def _ended(process: SpawnProcess, errors: Connection) -> None:
    """Wait for a process. Raises RebuildError if it failed."""
    await asyncio.to_thread(process.join)
    if process.exitcode != 0:
        try:
            reason = errors.recv() if errors.poll() else f"exit code {process.exitcode}"
        except EOFError:
            reason = f"exit code {process.exitcode}"
        raise RebuildError(f"a process of the rebuild failed: {reason}. The same command resumes the rebuild")


def _work(share: PartitionShare, parent: int, errors: Connection) -> None:
    """Run in a child process: apply the share, and exit early if the parent process ends."""

    async def work() -> None:
        watching = asyncio.create_task(_exit_without_parent(parent))
        try:
            await _apply(share)
        finally:
            watching.cancel()

    # Ctrl-C reaches every process of the terminal. The parent decides what to do, and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reduce_garbage_collection()
    try:
        asyncio.run(work())
    except Exception as error:
        errors.send(describe(error))
        raise SystemExit(1) from None


async def _exit_without_parent(parent: int) -> None:
    while os.getppid() == parent:
        await asyncio.sleep(_PARENT_CHECK_SECONDS)
    os._exit(1)


async def _apply(share: PartitionShare) -> None:
    async with tables_pool(share.settings, share.schema, LANES + 1) as pool:
        engine = Engine(share.settings, pool, share.identity)
        await engine.run(share.start, share.end)
