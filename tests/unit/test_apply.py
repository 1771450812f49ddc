"""The order of steps in one transaction of ``apply``, with a fake connection. tests/integration tests its tables."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from everyrun.extend.reserved import Reserved
from everyrun.log import events
from everyrun.log.cloudevents import Record
from everyrun.log.reading import Poll
from everyrun.projection.apply import apply
from everyrun.projection.decode import Poison
from everyrun.projection.offsets import ForeignLogError, GapError
from everyrun.store.sql import name_of
from tests.records import INSTALLATION, LOG, an_input, batch_event, lay_out, run_event

CHUNK = "sub_a.c1"
GIVEN = [an_input("sub_a", 1)]
SUBMITTED = batch_event(events.BatchSubmitted, "sub_a", CHUNK, 1, 1, batch_id="batch_a", inputs=GIVEN)
RUN = run_event("run_a", "batch_a", "PROCESSED", 3, key=Reserved(INSTALLATION, "sub_a:1", CHUNK, 1, 1), end=2)


class FakeConnection:
    """Remembers the names of statements; its tables are empty, except for how far partitions are applied."""

    def __init__(self, applied: int = 0, cluster_id: str = LOG.cluster_id) -> None:
        self.statements: list[str] = []
        self.rolled_back = 0
        self._applied = applied
        self._cluster_id = cluster_id

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        try:
            yield
        except Exception:
            self.rolled_back += 1
            raise

    async def execute(self, statement: str, *_: Any) -> str:
        self.statements.append(name_of(statement).split()[0])
        return ""

    executemany = execute

    async def fetch(self, statement: str, *arguments: Any) -> list[dict[str, Any]]:
        name = name_of(statement).split()[0]
        self.statements.append(name)
        if name != "lock_offsets":
            return []
        identity = {"next_offset": self._applied, "cluster_id": self._cluster_id, "partitions": LOG.partitions}
        pairs = zip(*arguments, strict=True)
        return [{"topic": topic, "partition": number, **identity} for topic, number in pairs]

    async def copy_records_to_table(self, table: str, **_: Any) -> None:
        self.statements.append(f"copy {table}")


def polls(*records: Record) -> list[Poll]:
    return [Poll(*partition, found) for partition, found in lay_out(records).items()]


async def no_poison(poison: Sequence[Poison]) -> None:
    raise AssertionError(poison)


async def apply_to(connection: Any, given: list[Poll], set_aside: Any = no_poison, **more: Any) -> Any:
    return await apply(connection, given, LOG, set_aside, **more)


async def test_offsets_are_locked_first_and_advance_last() -> None:
    connection = FakeConnection()
    applied = await apply_to(connection, polls(SUBMITTED))
    assert connection.statements[:3] == ["create_staging", "lock_offsets", "share_tables"]
    assert connection.statements[-1] == "advance_offsets"
    assert "copy results" in connection.statements
    assert applied.inputs == {"sub_a:1"}
    assert applied.states["sub_a:1"].row.status == "SUBMITTED"
    assert applied.attempts == {(CHUNK, 1)}


async def test_a_run_and_its_batch_in_one_transaction_settle_the_row() -> None:
    connection = FakeConnection()
    applied = await apply_to(connection, polls(SUBMITTED, RUN))
    assert "share_tables" in connection.statements
    assert "lock_tables" not in connection.statements
    selection = applied.states["sub_a:1"].selection
    assert selection is not None
    assert (selection.current.run_id, selection.current.status) == ("run_a", "PROCESSED")


async def test_records_applied_earlier_change_nothing_and_are_returned_for_publishing() -> None:
    connection = FakeConnection(applied=1)
    applied = await apply_to(connection, polls(SUBMITTED))
    assert connection.statements == ["create_staging", "lock_offsets"]
    assert (applied.states, applied.inputs, applied.attempts) == ({}, {"sub_a:1"}, {(CHUNK, 1)})


async def test_a_run_of_an_unknown_batch_locks_the_tables_exclusively() -> None:
    connection = FakeConnection()
    await apply_to(connection, polls(RUN))
    locks = [name for name in connection.statements if name in ("share_tables", "lock_tables")]
    assert (locks, connection.rolled_back) == (["share_tables", "lock_tables"], 1)
    assert "copy unmatched_runs" in connection.statements


async def test_a_gap_or_another_log_writes_nothing() -> None:
    given = [Poll(poll.topic, poll.partition, [poll.records[0]._replace(offset=7)]) for poll in polls(SUBMITTED)]
    behind = FakeConnection(applied=4)
    with pytest.raises(GapError) as gap:
        await apply_to(behind, given)
    assert list(gap.value.gaps.values()) == [4]
    foreign = FakeConnection(cluster_id="another")
    with pytest.raises(ForeignLogError):
        await apply_to(foreign, given)
    lagging = FakeConnection()
    with pytest.raises(GapError):
        await apply_to(lagging, polls(SUBMITTED), needed={("runs", 1): 9})
    for connection in (behind, foreign, lagging):
        assert "advance_offsets" not in connection.statements


async def test_poison_is_set_aside_before_the_offsets_advance() -> None:
    connection = FakeConnection()
    seen: list[str] = []

    async def set_aside(poison: Sequence[Poison]) -> None:
        assert "advance_offsets" not in connection.statements
        seen.extend(p.reason for p in poison)

    await apply_to(connection, polls(Record("runs", b"key", b"no JSON", [])), set_aside)
    assert seen
    assert seen[0].startswith("not a valid event of the topic runs")
    assert connection.statements[-1] == "advance_offsets"
