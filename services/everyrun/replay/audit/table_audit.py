"""Compare the live tables with the log, row by row, and check the log itself (``everyrun audit``).

The audit first applies the log to tables of its own. Then it opens a repeatable-read transaction on the live tables,
applies the log to its own tables up to exactly the offsets that this transaction shows, and compares the tables.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError
from msgspec import Struct

from everyrun.log import topics
from everyrun.log.connection import connection as kafka
from everyrun.log.reading import Partition, bounds
from everyrun.projection import tables
from everyrun.projection.offsets import INPUTS
from everyrun.replay.audit import log_check
from everyrun.replay.audit.compare import RowSelection, compare, tables_of
from everyrun.replay.audit.log_check import LogDefect
from everyrun.replay.audit.row_diff import Difference
from everyrun.replay.errors import RebuildError
from everyrun.replay.progress import OnRebuildProgress
from everyrun.replay.rebuild.engine import applied_offsets, tables_connection
from everyrun.replay.rebuild.rebuild_schema import RebuildSchema, hold_schema, partitions_past
from everyrun.settings import Settings
from everyrun.store.sql import beside

_sql = beside(__file__, "table_audit.sql")

SCHEMA = "everyrun_audit"
LIVE = tables.SCHEMA

#: Maximum number of differences that a result lists: if the live tables were emptied, every row is a difference.
KEPT = 10_000


class AuditResult(Struct, frozen=True):
    """The result of an audit.

    The log was read up to ``offsets``; ``records`` is the number of its records up to there. ``rows`` counts the
    compared rows by table. ``differences`` lists the first KEPT of ``differences_total`` differences. ``findings`` are
    defects of the log.
    """

    offsets: dict[Partition, int]
    records: int
    rows: dict[str, int]
    differences: list[Difference]
    differences_total: int
    findings: list[LogDefect]

    @property
    def agrees(self) -> bool:
        """True if the tables follow from the log and the log has no defects."""
        return not self.differences and not self.findings


class _Differences:
    """Passes every difference on, keeps the first KEPT of them, and counts all of them."""

    def __init__(self, on_difference: Callable[[Difference], None]) -> None:
        self._on_difference = on_difference
        self.kept: list[Difference] = []
        self.total = 0

    def add(self, difference: Difference) -> None:
        self._on_difference(difference)
        self.total += 1
        if len(self.kept) < KEPT:
            self.kept.append(difference)


async def audit(
    settings: Settings,
    on_progress: OnRebuildProgress,
    selection: RowSelection | None = None,
    on_difference: Callable[[Difference], None] = lambda _: None,
) -> AuditResult:
    """Compare the live tables with the log. Changes neither of them, and publishes nothing.

    Without a selection, every row is compared. ``on_difference`` is called with each difference as soon as it is found.
    An interrupted audit resumes. Raises what :func:`everyrun.replay.rebuild.rebuild_schema.rebuild` raises. Also raises
    RebuildError if there are no live tables, or if another version of Everyrun made them.
    """
    async with hold_schema(settings, SCHEMA) as held, tables_connection(settings, LIVE) as live:
        if await live.fetchval("select to_regclass('applied_offsets')") is None:
            raise RebuildError(f"the schema {LIVE} has no tables; create them with: everyrun migrate")
        ends = (await bounds(settings, INPUTS)).end
        await _apply(settings, held, _limited(await _live_offsets(live), ends), on_progress)
        acknowledged = await _acknowledged(settings)
        async with live.transaction(isolation="repeatable_read", readonly=True):
            live_offsets = await _live_offsets(live)
            ends = (await bounds(settings, INPUTS)).end
            target = _limited(live_offsets, ends)
            await _apply(settings, held, target, on_progress)
            differences = _Differences(on_difference)
            identity = await topics.identity(settings)
            for difference in offset_differences(live_offsets, ends, acknowledged, identity):
                differences.add(difference)
            rows: dict[str, int] = {}
            async with tables_connection(settings, SCHEMA) as log:
                await _compare(live, log, selection or RowSelection(), rows, differences)
                now = (await bounds(settings, INPUTS)).end
                findings = await log_check.defects(settings, log, target, now)
        await held.drop()
    return AuditResult(target, sum(target.values()), rows, differences.kept, differences.total, findings)


LiveOffsets = Mapping[Partition, tuple[int, topics.LogIdentity]]
"""The live rows of ``applied_offsets``: the next offset and the identity of the log, by partition."""


async def _live_offsets(live: asyncpg.Connection) -> LiveOffsets:
    rows = await live.fetch(_sql["applied_offsets"])
    return {
        (row["topic"], row["partition"]): (row["next_offset"], topics.LogIdentity(row["cluster_id"], row["partitions"]))
        for row in rows
    }


def _limited(live_offsets: LiveOffsets, ends: Mapping[Partition, int]) -> dict[Partition, int]:
    """Return the live offset of every partition, but at least 0 and at most the end of the log; 0 without a row."""
    return {p: max(0, min(live_offsets[p][0], end)) if p in live_offsets else 0 for p, end in ends.items()}


async def _apply(
    settings: Settings, held: RebuildSchema, target: Mapping[Partition, int], on_progress: OnRebuildProgress
) -> None:
    """Apply the log to the audit's tables up to the target, and note what the log check needs."""
    await held.create(unlogged=True)
    async with tables_connection(settings, SCHEMA) as connection:
        start = await applied_offsets(connection)
        if partitions_past(start, target):
            # The live tables were set back to an earlier position: start from the beginning.
            await held.drop()
            await held.create(unlogged=True)
            start = {}
        await log_check.create_tables(connection)
    await held.apply_until(target, on_progress, observe=lambda pool: log_check.observer(pool, start))


async def _acknowledged(settings: Settings) -> dict[Partition, int]:
    """Return the offsets that processors committed to Kafka. They commit only what the live tables contain."""
    admin = AIOKafkaAdminClient(**kafka(settings))
    await admin.start()
    try:
        committed = await _committed(admin, settings.topic_prefix + "processor")
    finally:
        await admin.close()
    prefix = settings.topic_prefix
    return {(tp.topic.removeprefix(prefix), tp.partition): meta.offset for tp, meta in committed.items()}


async def _committed(admin: AIOKafkaAdminClient, group: str) -> Any:
    """Return a group's committed offsets. Retries for 10 seconds: a new Kafka has no group coordinator at first."""
    for _ in range(40):
        try:
            return await admin.list_consumer_group_offsets(group)
        except GroupCoordinatorNotAvailableError:
            await asyncio.sleep(0.25)
    return await admin.list_consumer_group_offsets(group)


def offset_differences(
    live_offsets: LiveOffsets,
    ends: Mapping[Partition, int],
    acknowledged: Mapping[Partition, int],
    identity: topics.LogIdentity,
) -> list[Difference]:
    """List what is wrong with the rows of ``applied_offsets``. Pure."""
    found = []
    for (topic, partition), (offset, made_from) in sorted(live_offsets.items()):
        key = f"{topic}/{partition}"
        end = ends.get((topic, partition))
        if end is None:
            found.append(Difference("applied_offsets", key, "*", "a row", None))
        elif not 0 <= offset <= end:
            found.append(Difference("applied_offsets", key, "next_offset", offset, f"0 to {end}"))
        for name in topics.LogIdentity._fields:
            live, log = getattr(made_from, name), getattr(identity, name)
            if live != log:
                found.append(Difference("applied_offsets", key, name, live, log))
    for (topic, partition), offset in sorted(acknowledged.items()):
        applied = live_offsets[topic, partition][0] if (topic, partition) in live_offsets else 0
        if applied < offset and (topic, partition) in ends:
            wanted = f"at least {offset}, which was acknowledged"
            found.append(Difference("applied_offsets", f"{topic}/{partition}", "next_offset", applied, wanted))
    return found


async def _compare(
    live: asyncpg.Connection,
    log: asyncpg.Connection,
    selection: RowSelection,
    rows: dict[str, int],
    differences: _Differences,
) -> None:
    for connection in (live, log):
        await connection.execute(_sql["same_texts"])
    live_tables, log_tables = await tables_of(live, LIVE), await tables_of(log, SCHEMA)
    if live_tables != log_tables:
        names = sorted(n for n in {*live_tables, *log_tables} if live_tables.get(n) != log_tables.get(n))
        raise RebuildError(f"another version of Everyrun made the live {', '.join(names)}; run: everyrun migrate")
    for table in live_tables.values():
        async for difference in compare(live, log, table, selection, rows):
            differences.add(difference)
