"""Describe in words what events change."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from everyrun.log import events
from everyrun.replay.history.changes import InputProjection, run_changes
from tests.records import an_input, batch_event, run_event


def applied(*records: Any) -> tuple[InputProjection, list[str]]:
    projection = InputProjection("sub_1:1")
    return projection, [projection.apply(record.topic, in_log(record)).what for record in records]


def in_log(record: Any) -> Any:
    return SimpleNamespace(
        key=record.key, value=record.value, headers=record.headers, partition=0, offset=1, timestamp=1
    )


def test_an_input_without_a_run_follows_its_attempts() -> None:
    given = [an_input("sub_1", n) for n in (1, 2)]
    projection, changes = applied(
        batch_event(events.BatchRequested, "sub_1", "sub_1.c1", 1, 1, inputs=given),
        batch_event(events.BatchInDoubt, "sub_1", "sub_1.c1", 1, 2),
        batch_event(events.DoubtResent, "sub_1", "sub_1.c1", 1, 3),
    )
    assert [change.rpartition("; ")[2] for change in changes] == [
        "WAITING becomes SENDING",
        "SENDING becomes IN_DOUBT",
        "IN_DOUBT becomes WAITING",
    ]
    assert (projection.status, projection.row, projection.version) == ("WAITING", None, None)


def test_a_repeated_observation_changes_nothing() -> None:
    first = run_event("run_a", "batch_1", "PROCESSED", 5, key=None, end=4)
    assert [change.what for change in run_changes([("runs", first), ("runs", first)])] == [
        "webhook reports run_a as PROCESSED: first observation of this run",
        "webhook reports run_a as PROCESSED: no change, it was known already",
    ]


def test_an_event_that_cannot_be_decoded_changes_nothing() -> None:
    bad = SimpleNamespace(topic="runs", value=b"{", key=b"k", headers=(), partition=0, offset=1, timestamp=1)
    projection, (change,) = applied(bad)
    assert change.startswith("no change: the event cannot be decoded")
    assert projection.status == "WAITING"


def test_a_run_without_a_batch_says_why_it_matches_nothing() -> None:
    (alone,) = run_changes([("runs", in_log(run_event("run_a", None, "PROCESSED", 1, key=None, end=1)))])
    assert "it names no batch (it was started alone), so it matches no input" in alone.what
    (of_batch,) = run_changes([("runs", in_log(run_event("run_a", "batch_1", "PROCESSED", 1, key=None, end=1)))])
    assert "no batch" not in of_batch.what
