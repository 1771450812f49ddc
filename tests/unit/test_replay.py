"""Moments as they are written, and how polls are cut for one transaction."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from everyrun.projection.decode import Poll
from everyrun.replay.log_position import MomentError, parse, text
from everyrun.replay.rebuild.engine import cut
from tests.records import a_world, lay_out


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


@pytest.mark.parametrize("seed", range(20))
def test_cut_polls_hold_every_record_once_in_order(seed):
    chance = random.Random(seed)
    polls = [Poll(*position, records) for position, records in sorted(lay_out(a_world(chance)).items())]
    most, size = chance.choice((1, 3, 10, 1000)), chance.choice((100, 3000, 1 << 20))
    groups = list(cut(polls, most, size))
    again: dict = {}
    for group in groups:
        assert 0 < sum(len(poll.records) for poll in group) <= most
        assert all(poll.records for poll in group)
        values = [record.value for poll in group for record in poll.records]
        assert sum(map(len, values[:-1])) < size
        for poll in group:
            again.setdefault((poll.topic, poll.partition), []).extend(poll.records)
    assert again == {(poll.topic, poll.partition): list(poll.records) for poll in polls}
