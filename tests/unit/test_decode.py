"""Polls are decoded into runs and events, and no record stops those behind it."""

from __future__ import annotations

from typing import Any

import pytest

from everyrun.extend.reserved import Reserved
from everyrun.log import events
from everyrun.log.cloudevents import Record
from everyrun.log.reading import Poll
from everyrun.projection import decode as decode_module
from everyrun.projection.decode import decode_polls
from tests.records import INSTALLATION, an_input, batch_event, lay_out, run_event

KEY = Reserved(INSTALLATION, "sub_a:1", "sub_a.c1", 1, 1)


def polls(*records: Record) -> list[Poll]:
    return [Poll(*partition, found) for partition, found in lay_out(records, partitions=1).items()]


def test_observations_of_a_run_are_merged_without_the_reserved_key() -> None:
    seen = [run_event("run_a", "batch_a", status, when, key=KEY) for when, status in ((2, "FAILED"), (1, "PENDING"))]
    decoded = decode_polls(polls(*seen))
    (run,) = decoded.runs.values()
    assert run.status == "FAILED"
    assert decoded.bindings["run_a"] == [run.binding]
    assert decoded.metadata["run_a"] == [b'{"row":1}']
    assert b"everyrun:" not in run.run
    assert decoded.first_seen["run_a"] < run.observed_at


def test_events_are_sorted_by_what_they_are_about() -> None:
    decoded = decode_polls(
        polls(
            batch_event(events.BatchInDoubt, "sub_a", "sub_a.c1", 1, 1),
            batch_event(events.DoubtResent, "sub_a", "sub_a.c1", 1, 2),
            batch_event(
                events.BatchRegistered, "sub_r", "sub_r.c1", 1, 3, batch_id="batch_r", inputs=[an_input("sub_r", 1)]
            ),
        )
    )
    assert [type(logged.event).__name__ for logged in decoded.attempts] == [
        "BatchInDoubt",
        "DoubtResent",
        "BatchRegistered",
    ]
    assert [type(logged.event).__name__ for logged in decoded.decisions] == ["DoubtResent"]
    assert [type(logged.event).__name__ for logged in decoded.submissions] == ["BatchRegistered"]


def test_invalid_and_unstorable_records_are_poison_and_others_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    original = decode_module.run_of

    def run_of(record: Any) -> Any:
        if record.offset == 2:
            raise KeyError("unforeseen")
        return original(record)

    monkeypatch.setattr(decode_module, "run_of", run_of)
    runs = [run_event(f"run_{n}", "batch_a", "PROCESSED", n, key=KEY) for n in range(4)]
    decoded = decode_polls(polls(runs[0]._replace(value=b"{"), *runs[1:]), {("runs", 0, 1): "too long for an index"})
    reasons = [poison.reason for poison in decoded.poison]
    assert reasons[0].startswith("not a valid event of the topic runs")
    assert reasons[1:] == ["too long for an index", "KeyError: 'unforeseen'"]
    assert list(decoded.runs) == ["run_3"]
