"""Rebuild in several processes, each with a share of the partitions.

A share contains the partitions with certain numbers, of every topic. A batch and its runs are in partitions with the
same number, so they are in one share. Each process runs its own engine. All engines write to the same tables, and each
updates the rows of its own partitions in ``applied_offsets``.
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
    """The work of one process: apply the records from ``start`` up to ``end`` to the tables of ``schema``.

    ``end`` contains only the partitions of the share; ``start`` may contain others too.
    """

    settings: Settings
    schema: str
    identity: LogIdentity
    start: dict[Partition, int]
    end: dict[Partition, int]


def split_partitions(end: Offsets, processes: int) -> list[dict[Partition, int]]:
    """Split the end offsets into at most one share per process; all partitions with the same number share a process."""
    numbers = sorted({number for _, number in end})
    process_of = {number: index % processes for index, number in enumerate(numbers)}
    shares = [
        {partition: offset for partition, offset in end.items() if process_of[partition[1]] == process}
        for process in range(processes)
    ]
    return [share for share in shares if share]


async def apply_shares(shares: Sequence[PartitionShare]) -> None:
    """Apply the first share in this process and every other share in a child process; return when all are done.

    The child processes end when this process ends, even if it is killed. Raises RebuildError if a child process fails,
    and what ``Engine.run`` raises for the first share.
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
    """Start one process per share, each with a pipe that carries its error back; end the processes after the block."""
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
    """Wait until a process has ended. Raises RebuildError if the process failed."""
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

    # Ctrl-C reaches every process of the terminal. Ignore it here: the parent process decides what to do, and ends this
    # process if necessary.
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
