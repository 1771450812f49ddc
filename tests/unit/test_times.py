"""Parsing of times as people write them."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from everyrun.cli import exits
from everyrun.replay.audit import as_of
from everyrun.replay.jobs.job_requests import job_request
from everyrun.replay.times import TimeError, parse_time
from tests.unit.cli import everyrun
from tests.unit.test_cli_asof import STACK

#: Half past midnight of the next day in Berlin.
NOW = datetime(2026, 11, 26, 23, 30, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-03-03T12:00:00Z", "2026-03-03T12:00:00+00:00"),
        ("2026-03-03t12:00:00.123456+0130", "2026-03-03T10:30:00.123456+00:00"),
        ("2026-03-03 12:00 Europe/Berlin", "2026-03-03T11:00:00+00:00"),
        ("2026-07-03 9:00 Europe/Berlin", "2026-07-03T07:00:00+00:00"),
        ("yesterday 12:00 Europe/Berlin", "2026-11-26T11:00:00+00:00"),
        ("yesterday 12:00 UTC", "2026-11-25T12:00:00+00:00"),
        ("today Europe/Berlin", "2026-11-26T23:00:00+00:00"),
        ("2026-03-03 America/New_York", "2026-03-03T05:00:00+00:00"),
        ("now", "2026-11-26T23:30:15+00:00"),
        ("-5m", "2026-11-26T23:25:15+00:00"),
        ("-1h30m", "2026-11-26T22:00:15+00:00"),
        ("-2d", "2026-11-24T23:30:15+00:00"),
        ("2026-10-25 02:30 +0200", "2026-10-25T00:30:00+00:00"),
    ],
)
def test_parse_time(text: str, expected: str) -> None:
    found = parse_time(text, NOW)
    assert found == datetime.fromisoformat(expected)
    assert found.tzinfo == UTC


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2026-03-03T12:00", "write '2026-03-03 12:00 Europe/Berlin' for a place, or 2026-03-03T12:00Z for UTC"),
        ("yesterday 12:00", "has no time zone; write 'yesterday 12:00 Europe/Berlin'"),
        ("2026-03-03", "has no time zone"),
        ("2026-10-25 02:30 Europe/Berlin", "clocks showed that time twice; write +0200 or +0100 instead of the zone"),
        ("2026-03-29 02:30 Europe/Berlin", "clocks skipped that time"),
        ("2026-03-03 12:00 Europe/Berlim", "unknown time zone 'Europe/Berlim'"),
        ("2026-03-03 12:00 ../etc/passwd", "is not a time"),
        ("2026-13-03 12:00 UTC", "is not a time: month must be in 1..12"),
        ("2026-03-03 25:00 UTC", "is not a time"),
        ("noon", "is not a time; write 2026-03-03T12:00:00Z, '2026-03-03 12:00 Europe/Berlin'"),
        ("-99999999999d", "before the year 1"),
        ("5m", "is not a time"),
    ],
)
def test_other_texts_are_refused_with_a_remedy(text: str, message: str) -> None:
    with pytest.raises(TimeError) as refused:
        parse_time(text, NOW)
    assert message in str(refused.value)


@given(st.text(st.sampled_from("0123456789-+:TZ. tody yesra/Eu"), max_size=40))
def test_any_text_is_a_time_or_refused(text: str) -> None:
    with contextlib.suppress(TimeError):
        assert parse_time(text, NOW).tzinfo == UTC


def test_commands_accept_an_age_as_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    positions: list[Any] = []

    def tables(_settings: Any, position: Any, _on_progress: Any) -> Any:
        positions.append(position)
        raise RuntimeError

    monkeypatch.setattr(as_of, "as_of", tables)
    for command in (("as-of", "-5m", "report", "sub_1"), ("as-of", "yesterday 12:00 Europe/Berlin", "row", "sub_1:a")):
        assert isinstance(everyrun(*command, **STACK).exception, RuntimeError)
    assert timedelta(minutes=4) < datetime.now(UTC) - positions[0] < timedelta(minutes=6)
    refused = everyrun("as-of", "2026-03-03T12:00:00", "report", "sub_1", **STACK)
    assert refused.exit_code == exits.USAGE
    assert everyrun("as-of", "-5m", "report", "sub_1", "--fromat", "jsonl", **STACK).exit_code == exits.USAGE
    for option in (("audit", "--since"), ("replay", "--to", "x.ndjson", "--since"), ("rebuild", "--until")):
        refused = everyrun(*option, "2026-03-03T12:00", **STACK)
        assert refused.exit_code == exits.USAGE
        assert "time zone" in refused.output


def test_an_age_in_a_job_counts_from_its_request() -> None:
    job = job_request.validate_python({"kind": "as-of", "moment": "-5m", "what": "report", "id": "sub_1"})
    assert abs(datetime.fromisoformat(job.moment) + timedelta(minutes=5) - datetime.now(UTC)) < timedelta(minutes=1)
    for wrong in (
        {"kind": "as-of", "moment": "2026-03-03T12:00", "what": "report", "id": "sub_1"},
        {"kind": "audit", "since": "2026-03-03T12:00:00"},
        {"kind": "replay", "to": "audit-2026", "until": "2026-03-03T12:00:00"},
    ):
        with pytest.raises(ValidationError, match="time zone"):
            job_request.validate_python(wrong)
