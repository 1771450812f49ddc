"""Positions of the log as text."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from everyrun.replay.errors import LogPositionError
from everyrun.replay.log_position import format_offsets, parse_position


def test_a_position_is_a_time_or_offsets() -> None:
    noon = datetime(2026, 3, 3, 12, tzinfo=UTC)
    assert parse_position("2026-03-03T12:00:00Z") == noon
    assert parse_position("2026-03-03T13:00+01:00") == noon
    assert parse_position("2026-03-03 12:00 UTC") == noon
    offsets = {("batches", 0): 12, ("runs", 3): 400}
    assert parse_position("batches:0=12, runs:3=400") == offsets
    assert parse_position(format_offsets({**offsets, ("runs", 1): 0})) == offsets


@pytest.mark.parametrize("text", ["noon", "", "2026-03-03 12:00", "batches:0", "batches:0=12,noon", "results:0=3"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(LogPositionError):
        parse_position(text)
