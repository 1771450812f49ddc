"""Measure how far the result tables lag behind the log, and see if they catch up."""

from __future__ import annotations

import asyncio
import time

import asyncpg
from aiokafka.errors import KafkaError

from everyrun.doctor.facts import Following
from everyrun.log.reading import end_offsets
from everyrun.redact import describe
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY
from everyrun.store.session import PoolerError, connect
from everyrun.store.sql import beside

_sql = beside(__file__, "doctor.sql")
#: The topics that processors read.
_TOPICS = ("batches", "deliveries", "quarantine", "runs")
_ANSWER_WITHIN = 10.0
#: Seconds to wait for a processor to apply a record. A working processor needs less.
MOVES_WITHIN = 10.0
_EVERY = 0.25


async def ask_progress(settings: Settings) -> Following:
    """Measure how far the result tables lag behind the log.

    If they lag, wait up to MOVES_WITHIN seconds until a record is applied. If Kafka or Postgres fails, the error is
    returned as ``problem``, and not raised.
    """
    try:
        async with asyncio.timeout(_ANSWER_WITHIN):
            ends = await end_offsets(settings, _TOPICS)
        connection = await connect(
            settings.postgres_dsn.get_secret_value(),
            name="doctor",
            timeout=_ANSWER_WITHIN,
            command_timeout=_ANSWER_WITHIN,
        )
    except (*POSTGRES_AWAY, KafkaError, ValueError, PoolerError) as error:
        return Following(problem=describe(error))
    try:
        began = time.monotonic()
        first = missing = await _missing(connection, ends)
        while missing and missing == first and time.monotonic() - began < MOVES_WITHIN:
            await asyncio.sleep(_EVERY)
            missing = await _missing(connection, ends)
        return Following(sum(first.values()), missing != first, time.monotonic() - began)
    except POSTGRES_AWAY as error:
        return Following(problem=describe(error))
    finally:
        connection.terminate()


async def _missing(connection: asyncpg.Connection, ends: dict[tuple[str, int], int]) -> dict[tuple[str, int], int]:
    """For each (topic, partition), return how many records before its end offset are not applied yet.

    Leave out partitions without such records.
    """
    rows = await connection.fetch(_sql["applied"])
    applied = {(row["topic"], row["partition"]): row["next_offset"] for row in rows}
    missing = {partition: end - applied.get(partition, 0) for partition, end in ends.items()}
    return {partition: number for partition, number in missing.items() if number > 0}
