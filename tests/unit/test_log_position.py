"""Moments as people write them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from everyrun.replay.log_position import MomentError, parse, text


def test_a_moment_is_a_time_or_offsets():
    noon = datetime(2026, 3, 3, 12, tzinfo=UTC)
    assert parse("2026-03-03T12:00:00Z") == noon
    assert parse("2026-03-03T13:00+01:00") == noon
    assert parse("2026-03-03 12:00 UTC") == noon
    offsets = {("batches", 0): 12, ("runs", 3): 400}
    assert parse("batches:0=12, runs:3=400") == offsets
    assert parse(text({**offsets, ("runs", 1): 0})) == offsets
    for wrong in ("noon", "", "2026-03-03 12:00", "batches:0", "batches:0=12,noon", "results:0=3"):
        with pytest.raises(MomentError):
            parse(wrong)
