"""Measure rebuild and audit against ``getmany`` alone, and against COPY and upsert of the same rows alone.

REPLAY_RUNS sets the number of runs.
"""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import time

from benchmarks import archive, world
from benchmarks.processor import _write
from benchmarks.servers import Servers, row
from everyrun.log import events, topics
from everyrun.log.cloudevents import record, timestamp
from everyrun.log.reading import read_ranges
from everyrun.projection import tables
from everyrun.projection.offsets import INPUTS
from everyrun.replay.log_position import resolve_offsets
from everyrun.replay.rebuild.engine import MAX_RECORDS, Engine, tables_connection, tables_pool
from everyrun.replay.rebuild.rebuild_schema import hold_schema
from everyrun.store.sql import beside
from everyrun.submission.chunks import chunk_id

_INPUTS = 1000
_SIZE = 600
_sql = beside(tables.__file__, "apply.sql")

#: The command line in a separate process, so that its memory can be measured.
_COMMAND = [sys.executable, "-c", "from everyrun.cli.app import main; main()"]


async def run(servers: Servers) -> list[tuple[str, ...]]:
    runs = int(os.environ.get("REPLAY_RUNS", "100000"))
    batches = runs // _INPUTS
    await _write(servers, _requested(batches))
    await _write(servers, world.batches(batches, _INPUTS))
    await _write(servers, world.runs(runs, _INPUTS, _SIZE))
    fetch = runs / await _getmany(servers)
    upsert = runs / await _upsert(servers, batches)
    seconds, memory = await _everyrun(servers, "rebuild")
    rebuilt = runs / seconds
    two_seconds, _ = await _everyrun(servers, "rebuild", "--schema", "in_two", "--processes", "2")
    await _fill(servers)
    audited, audit_memory = await _everyrun(servers, "audit")
    _, index_seconds = await archive.indexed(servers)
    return [
        row(f"rebuild of {runs:,} runs", rebuilt, upsert, "runs/s", "0.7 of COPY + upsert"),
        row(f"rebuild of {runs:,} runs", rebuilt, fetch, "runs/s", "(getmany alone)"),
        row("the same, two processes", runs / two_seconds, rebuilt, "runs/s", "1.2 of one process"),
        row("the rebuild, then the history index", runs / (seconds + index_seconds), upsert, "runs/s", "(counted in)"),
        row("audit of the same", audited, seconds, "s", "at most 1.3 of the rebuild"),
        row("memory of the rebuild", memory, 400, "MB", "at most 1"),
        row("memory of the audit", audit_memory, 400, "MB", "at most 1"),
        await archive.history(servers, runs),
    ]


def _requested(batches: int):
    """Yield the batch-requested events, which an audit expects before each batch."""
    now = timestamp(time.time())
    for number in range(batches):
        chunk = chunk_id(world.SUBMISSION, number + 1)
        event = events.BatchRequested(
            submission_id=world.SUBMISSION,
            chunk=chunk,
            attempt=1,
            installation=world.INSTALLATION,
            workflow_id="workflow_1",
            workflow_version=None,
            priority=90,
            deadline=now,
            input_ids=[_id(n) for n in range(number * _INPUTS, (number + 1) * _INPUTS)],
        )
        yield record("batches", event, key=chunk, id=f"{chunk}/1/batch-requested", source="/bench", time=now)


async def _getmany(servers: Servers) -> float:
    """Return the seconds that it takes to read the log without processing it."""
    ends = await resolve_offsets(servers.settings, None)
    began, count = time.monotonic(), 0
    async for stretch in read_ranges(
        servers.settings, {p: (0, end) for p, end in ends.items()}, max_records=MAX_RECORDS
    ):
        count += len(stretch.records)
    assert count == sum(ends.values())
    assert set(INPUTS) == {topic for topic, _ in ends}
    return time.monotonic() - began


async def _upsert(servers: Servers, batches: int) -> float:
    """Return the seconds that it takes to COPY the rows of the batches, and then to COPY and upsert those of the runs.

    Nothing is decoded, matched or counted, and preparing the values is not timed.
    """
    async with hold_schema(servers.settings, "bare") as held:
        await held.create()
        async with tables_connection(servers.settings, "bare") as connection:
            await connection.execute("set synchronous_commit = off")
            await connection.execute(_sql["create_staging"])
            now = await connection.fetchval("select now()")
            spent = 0.0
            for batch in range(batches):
                spent += await _batch(connection, batch, now)
            for start in range(0, batches * _INPUTS, MAX_RECORDS):
                spent += await _runs(
                    connection, range(start, min(start + MAX_RECORDS, batches * _INPUTS)), batches, now
                )
        await held.drop()
    return spent


async def _fill(servers: Servers) -> None:
    """Fill the live tables, so that there are rows to audit."""
    async with tables_pool(servers.settings, "everyrun") as pool:
        engine = Engine(servers.settings, pool, await topics.identity(servers.settings))
        await engine.run({}, await resolve_offsets(servers.settings, None))


def _id(number: int) -> str:
    return f"{world.SUBMISSION}:invoice-{number:07d}"


async def _batch(connection, batch: int, now) -> float:
    rows = [
        (_id(n), f"invoice-{n:07d}", world.SUBMISSION, f"batch_{batch:05d}", n + 1, f"c{batch}", 1,
         b'{"url":"https://files.example.com/invoices/0000001.pdf","name":"1.pdf"}', b'{"customer":"c-1","row":1}',
         None, "SUBMITTED", None, None, None, None, None, now, None, f"1{'a' * 40}.")
        for n in range(batch * _INPUTS, (batch + 1) * _INPUTS)
    ]  # fmt: skip
    began = time.monotonic()
    await tables.copy(connection, "results", tables.RESULT_COLUMNS, rows)
    return time.monotonic() - began


async def _runs(connection, part: range, batches: int, now) -> float:
    # In the order of the log: one run of each batch in turn.
    numbers = [(k % batches) * _INPUTS + k // batches for k in part]
    rows = [
        (_id(n), f"1{'a' * 40}.", f"batch_{n // _INPUTS:05d}", f"c{n // _INPUTS}", 1, f"workflow_run_{n:020d}",
         "PROCESSED", None, None, world.run(n, _INPUTS, _SIZE), 2.0, "webhook", now, now, f"3{'a' * 40}.{'6' * 49}")
        for n in numbers
    ]  # fmt: skip
    began = time.monotonic()
    async with connection.transaction():
        await tables.copy(connection, "staged_results", tables.STAGED_COLUMNS, rows)
        assert await connection.execute(_sql["update_results"]) == f"UPDATE {len(rows)}"
    return time.monotonic() - began


async def _everyrun(servers: Servers, *arguments: str) -> tuple[float, float]:
    """Run a command; return the seconds that it took, and its maximum memory in MB."""
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("EVERYRUN_")},
        "EVERYRUN_KAFKA_BOOTSTRAP": servers.settings.kafka_bootstrap,
        "EVERYRUN_POSTGRES_DSN": servers.dsn,
        "EVERYRUN_TOPIC_PREFIX": servers.settings.topic_prefix,
    }
    began = time.monotonic()
    command = [*_COMMAND, *arguments]
    usage = await asyncio.to_thread(_run, command, env)
    return time.monotonic() - began, usage / 1024


def _run(command: list[str], env: dict[str, str]) -> int:
    child = subprocess.Popen(command, env=env)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, (child.returncode, command)
    assert isinstance(usage, resource.struct_rusage)
    return usage.ru_maxrss
