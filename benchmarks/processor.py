"""Measure the running processor (matching, counting, publishing) against COPY and upsert of the same rows alone."""

from __future__ import annotations

import time

from aiokafka.admin import AIOKafkaAdminClient

from benchmarks import world
from benchmarks.servers import Servers, row, until
from everyrun.log import topics
from everyrun.log.producer import Producer
from everyrun.log.reading import end_offsets
from everyrun.projection import tables
from everyrun.store.sql import beside

_INPUTS, _BATCHES = 1000, 80
_POLL = 4000
_sql = beside(tables.__file__, "apply.sql")


async def _write(servers: Servers, records) -> None:
    async with Producer(servers.settings, linger_ms=5) as producer:
        part = []
        for record in records:
            part.append(record)
            if len(part) == 500:
                await producer.append(part)
                part = []
        await producer.append(part)


async def _ceiling(servers: Servers, size: int) -> float:
    """Return the rate of COPY into a staging table and upsert into ``results``, one poll at a time."""
    connection = await servers.connect()
    await tables.setup_connection(connection)
    await connection.execute("create schema bare; create table bare.results (like everyrun.results including all)")
    await connection.execute("insert into bare.results select * from everyrun.results", timeout=300)
    staged = _sql["create_staging"]
    await connection.execute("set search_path = bare")
    await connection.execute(staged)
    count = _INPUTS * _BATCHES
    rows = await connection.fetch(
        "select input_id, version, chunk, attempt, batch_id from bare.results order by input_id"
    )
    assert len(rows) == count
    now = rows and (await connection.fetchval("select now()"))
    spent = 0.0
    for start in range(0, count, _POLL):
        records = [
            (*(r[name] for name in ("input_id", "version", "batch_id", "chunk", "attempt")),
             f"workflow_run_{start + k:020d}", "PROCESSED", None, None, world.run(start + k, _INPUTS, size),
             2.0, "webhook", now, now, "3" + r["version"])
            for k, r in enumerate(rows[start : start + _POLL])
        ]  # fmt: skip
        began = time.monotonic()
        async with connection.transaction():
            await tables.copy(connection, "staged_results", tables.STAGED_COLUMNS, records)
            await connection.execute(_sql["update_results"])
        spent += time.monotonic() - began
    await connection.execute("drop schema bare cascade")
    await connection.close()
    return count / spent


async def _live(servers: Servers, size: int) -> tuple[float, float]:
    """Return the rate of the processor from ready to its last published row, and the ceiling, measured before it."""
    count = _INPUTS * _BATCHES
    await _write(servers, world.batches(_BATCHES, _INPUTS))
    await servers.start("processor")
    connection = await servers.connect()

    # Records that are not acknowledged would be published again during the measurement.
    await until(lambda: _acknowledged(servers), 120)
    assert await connection.fetchval("select count(*) from everyrun.results") == count
    servers.stop("processor")
    ceiling = await _ceiling(servers, size)
    await _write(servers, world.runs(count, _INPUTS, size))
    before = sum((await end_offsets(servers.settings, ("results",))).values())
    await servers.start("processor")
    # Do not start at the first rows: one transaction may hold a large part of all rows.
    began = time.monotonic()

    async def published() -> bool:
        return sum((await end_offsets(servers.settings, ("results",))).values()) >= before + count

    async def applied() -> bool:
        return (
            await connection.fetchval("select coalesce(sum((counts->>'PROCESSED')::int), 0) from everyrun.batches")
            == count
        )

    await until(applied, 300)
    await until(published, 300)
    seconds = time.monotonic() - began
    servers.stop("processor")
    await connection.close()
    return count / seconds, ceiling


async def _acknowledged(servers: Servers) -> bool:
    """Return True if the processor's group has committed up to the end of the batches."""
    admin = AIOKafkaAdminClient(bootstrap_servers=servers.settings.kafka_bootstrap)
    await admin.start()
    try:
        committed = await admin.list_consumer_group_offsets(servers.settings.topic("processor"))
    finally:
        await admin.close()
    topic = servers.settings.topic("batches")
    reached = sum(found.offset for partition, found in committed.items() if partition.topic == topic)
    return reached == sum((await end_offsets(servers.settings, ("batches",))).values())


async def run(servers: Servers) -> list[tuple[str, ...]]:
    found = []
    for size in (600, 3000):
        figure, ceiling = await _live(servers, size)
        name = f"processor, live, runs of {size / 1000:.1f} KB"
        found.append(row(name, figure, ceiling, "runs/s", "0.5 of COPY + upsert"))
        await _reset(servers)
    return found


async def _reset(servers: Servers) -> None:
    """Empty the database, and switch to topics with another prefix."""
    connection = await servers.connect()
    names = "submissions, batches, results, other_runs, unmatched_runs, deliveries, quarantine, applied_offsets"
    await connection.execute("truncate " + ", ".join(f"everyrun.{name}" for name in names.split(", ")))
    await connection.close()
    servers.settings.topic_prefix = "second."
    await topics.create(servers.settings)
