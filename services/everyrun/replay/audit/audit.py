"""``audit``: do the tables say what the log says, and is the log itself whole?

The log is applied to tables of its own; then the live tables are looked at in one repeatable-read transaction, the
rebuilt ones brought to exactly the offsets that it shows, and both compared.
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
from everyrun.replay.audit import log_check
from everyrun.replay.audit.compare import Selection, compare, tables_of
from everyrun.replay.audit.log_check import Finding
from everyrun.replay.audit.row_diff import Difference
from everyrun.replay.rebuild.engine import INPUTS, applied_offsets, tables_connection
from everyrun.replay.rebuild.rebuild import ReplayError, Tell, Workplace, past, workplace
from everyrun.settings import Settings
from everyrun.store.sql import beside

_sql = beside(__file__, "../replay.sql")

SCHEMA = "everyrun_audit"
LIVE = tables.SCHEMA


#: Differences that are kept; those of emptied tables are as many as the rows.
KEPT = 10_000


class Audited(Struct, frozen=True):
    """What an audit looked at and found: up to which offsets, how many records and rows, what differs.

    ``differences`` are the first KEPT of ``differences_total``.
    """

    offsets: dict[Partition, int]
    records: int
    rows: dict[str, int]
    differences: list[Difference]
    differences_total: int
    findings: list[Finding]

    @property
    def agrees(self) -> bool:
        """Whether the tables are what the log says, and the log is whole."""
        return not self.differences and not self.findings


class _Differences:
    """Hands every difference on, keeps the first of them, and counts all."""

    def __init__(self, note: Callable[[Difference], None]) -> None:
        self._note = note
        self.kept: list[Difference] = []
        self.total = 0

    def add(self, difference: Difference) -> None:
        self._note(difference)
        self.total += 1
        if len(self.kept) < KEPT:
            self.kept.append(difference)


async def audit(
    settings: Settings,
    tell: Tell,
    selection: Selection | None = None,
    note: Callable[[Difference], None] = lambda _: None,
) -> Audited:
    """Compare the live tables with the log; everything where nothing is selected. Changes neither, publishes nothing.

    ``note`` is told every difference as it is found.

    An audit that was killed resumes where it was. Raises what :func:`everyrun.replay.rebuild.rebuild.rebuild` raises,
    and ReplayError if there are no live tables or they are of another version of Everyrun.
    """
    async with workplace(settings, SCHEMA) as place, tables_connection(settings, LIVE) as live:
        if await live.fetchval("select to_regclass('applied_offsets')") is None:
            raise ReplayError(f"there are no tables in the schema {LIVE}; make them with: everyrun migrate")
        await _apply(settings, place, _within(await _said(live), (await bounds(settings, INPUTS)).end), tell)
        acknowledged = await _acknowledged(settings)
        async with live.transaction(isolation="repeatable_read", readonly=True):
            said = await _said(live)
            ends = (await bounds(settings, INPUTS)).end
            target = _within(said, ends)
            await _apply(settings, place, target, tell)
            differences = _Differences(note)
            for one in offset_differences(said, ends, acknowledged, await topics.identity(settings)):
                differences.add(one)
            rows: dict[str, int] = {}
            async with tables_connection(settings, SCHEMA) as log:
                await _compare(live, log, selection or Selection(), rows, differences)
                findings = await log_check.findings(settings, log, target, (await bounds(settings, INPUTS)).end)
        await place.drop()
    return Audited(target, sum(target.values()), rows, differences.kept, differences.total, findings)


async def _committed(admin: AIOKafkaAdminClient, group: str) -> Any:
    """A Kafka that never had a group needs a moment until it can say so."""
    for _ in range(40):
        try:
            return await admin.list_consumer_group_offsets(group)
        except GroupCoordinatorNotAvailableError:
            await asyncio.sleep(0.25)
    return await admin.list_consumer_group_offsets(group)


Said = Mapping[Partition, tuple[int, topics.LogIdentity]]
"""What ``applied_offsets`` says: the next offset of each partition, and the log that it is of."""


async def _said(live: asyncpg.Connection) -> Said:
    rows = await live.fetch(_sql["applied_offsets"])
    return {
        (row["topic"], row["partition"]): (row["next_offset"], topics.LogIdentity(row["cluster_id"], row["partitions"]))
        for row in rows
    }


def _within(said: Said, ends: Mapping[Partition, int]) -> dict[Partition, int]:
    """The offsets of every partition, none past the end of the log, nor before its beginning."""
    return {p: max(0, min(said[p][0], end)) if p in said else 0 for p, end in ends.items()}


async def _apply(settings: Settings, place: Workplace, target: Mapping[Partition, int], tell: Tell) -> None:
    """Bring the rebuilt tables to the offsets, looking at the log on the way; from the beginning if need be."""
    await place.make(unlogged=True)
    async with tables_connection(settings, SCHEMA) as connection:
        start = await applied_offsets(connection)
        if past(start, target):
            # The live tables were set back.
            await place.drop()
            await place.make(unlogged=True)
            start = {}
        await log_check.prepare(connection)
    await place.bring_to(target, tell, observe=lambda pool: log_check.observer(pool, start))


async def _acknowledged(settings: Settings) -> dict[Partition, int]:
    """What the processors acknowledged to Kafka: they do that after the tables have it, never before."""
    admin = AIOKafkaAdminClient(**kafka(settings))
    await admin.start()
    try:
        committed = await _committed(admin, settings.topic_prefix + "processor")
    finally:
        await admin.close()
    prefix = settings.topic_prefix
    return {(tp.topic.removeprefix(prefix), tp.partition): meta.offset for tp, meta in committed.items()}


def offset_differences(
    said: Said,
    ends: Mapping[Partition, int],
    acknowledged: Mapping[Partition, int],
    identity: topics.LogIdentity,
) -> list[Difference]:
    """What is wrong with ``applied_offsets`` itself. Pure."""
    found = []
    for (topic, partition), (offset, made_from) in sorted(said.items()):
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
        applied = said[topic, partition][0] if (topic, partition) in said else 0
        if applied < offset and (topic, partition) in ends:
            wanted = f"at least {offset}, which was acknowledged"
            found.append(Difference("applied_offsets", f"{topic}/{partition}", "next_offset", applied, wanted))
    return found


async def _compare(
    live: asyncpg.Connection,
    log: asyncpg.Connection,
    selection: Selection,
    rows: dict[str, int],
    differences: _Differences,
) -> None:
    for connection in (live, log):
        await connection.execute(_sql["same_texts"])
    sides = [await tables_of(live, LIVE), await tables_of(log, SCHEMA)]
    if sides[0] != sides[1]:
        names = sorted(n for n in {*sides[0], *sides[1]} if sides[0].get(n) != sides[1].get(n))
        raise ReplayError(f"{', '.join(names)}: the live schema is of another version; run: everyrun migrate")
    for table in sides[0].values():
        async for difference in compare(live, log, table, selection, rows):
            differences.add(difference)
