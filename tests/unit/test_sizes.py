"""Every record fits the log, whatever comes in: a record that never fits would be retried for ever."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from everyrun.log.cloudevents import Record
from everyrun.log.producer import MAX_RECORD_BYTES
from everyrun.log.quarantine import quarantined
from everyrun.projection import output_records, tables

MIB = 1 << 20


def kept_of(raw: bytes, **more: Any) -> tuple[Record, dict[str, Any]]:
    given: dict[str, Any] = {"headers": [("x-odd", "1")], "reason": "no reason", **more}
    made = quarantined(source="runs/0/7", topic="runs", raw=raw, time="t", service="/test", **given)
    return made, msgspec.json.decode(made.value)


def size(made: Record) -> int:
    return len(made.key) + len(made.value) + sum(len(name) + len(value) for name, value in made.headers)


@pytest.mark.parametrize("length", [0, 11 * MIB])
def test_a_message_that_fits_is_kept_completely(length: int) -> None:
    raw = b"x" * length
    made, event = kept_of(raw, message_key=b"batch_1")
    assert base64.b64decode(event["raw"]) == raw
    assert (event["reason"], event["headers"]) == ("no reason", [["x-odd", "1"]])
    assert base64.b64decode(event["key"]) == b"batch_1"
    assert size(made) < MAX_RECORD_BYTES


@pytest.mark.parametrize("length", [12 * MIB, 16 * MIB, 40 * MIB])
def test_a_message_that_does_not_fit_is_truncated_and_the_reason_says_so(length: int) -> None:
    raw = b"begins" + b"x" * length
    made, event = kept_of(raw)
    assert size(made) < MAX_RECORD_BYTES
    kept = base64.b64decode(event["raw"])
    assert len(kept) > 11 * MIB
    assert raw.startswith(kept)
    assert event["reason"] == f"no reason (only the first {len(kept)} of its {len(raw)} bytes are kept)"
    assert kept_of(raw)[0] == made, "the same message gives the same record"


def test_headers_and_reasons_of_any_size_fit() -> None:
    length = 17 * MIB
    made, event = kept_of(b"x" * length, headers=[("x-odd", "y" * length)], reason="z" * length)
    assert size(made) < MAX_RECORD_BYTES
    assert event["headers"] == []
    assert "without headers and key" in event["reason"]


def a_row(run: bytes | None, **more: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(tables.RESULT_COLUMNS)
    row |= {"input_id": "sub:1", "external_id": "1", "submission_id": "sub", "position": 1, "chunk": "c", "attempt": 1}
    row |= {"file": b"{}", "metadata": b'{"a": 1}', "run_id": "run_1", "status": "PROCESSED", "version": "3"}
    return row | {"run": run} | more


def published(row: dict[str, Any]) -> dict[str, Any]:
    made = output_records.result_record(row)
    assert size(made) < MAX_RECORD_BYTES
    event: dict[str, Any] = msgspec.json.decode(made.value)
    assert made.headers[0] == ("ce_id", b"sub:1/3")
    return event


def test_a_run_near_the_limit_fits_although_postgres_adds_spaces() -> None:
    run = {"id": "run_1", "values": [1] * (7 * MIB)}
    spaced = msgspec.json.format(msgspec.json.encode(run), indent=0)
    assert len(spaced) > MAX_RECORD_BYTES
    assert published(a_row(spaced))["run"] == run


def test_a_run_that_does_not_fit_is_left_out_except_its_id() -> None:
    event = published(a_row(b'{"id":"run_1","text":"' + b"x" * (17 * MIB) + b'"}', failure_message="short"))
    assert (event["run"], event["run_id"], event["status"]) == (None, "run_1", "PROCESSED")
    assert (event["failure_message"], event["metadata"]) == ("short", {"a": 1})


def test_failure_messages_of_any_size_fit() -> None:
    event = published(a_row(b"{}", failure_message="m" * (17 * MIB), failure_reason="r"))
    assert (len(event["failure_message"]), event["failure_reason"]) == (10_000, "r")
    assert event["run_id"] == "run_1"


def test_a_record_that_fits_is_published_unchanged() -> None:
    row = a_row(b'{"id": "run_1"}')
    assert b'"run":{"id": "run_1"}' in output_records.result_record(row).value
