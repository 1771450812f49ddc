"""Offsets are locked in one order, polls are split at them, and gaps and foreign logs are found."""

from __future__ import annotations

import pytest

from everyrun.log.reading import Poll
from everyrun.projection.offsets import ForeignLogError, GapError, greatest, lockable, missing, refuse_ahead, split_at
from tests.records import logged

POLL = Poll("runs", 0, [logged("runs", 0, n) for n in (3, 4, 6)])


def test_both_sides_of_a_chunk_are_locked_in_one_order() -> None:
    assert lockable([("runs", 1), ("deliveries", 0)]) == [("batches", 1), ("deliveries", 0), ("runs", 1)]


def test_a_poll_is_split_where_the_tables_end() -> None:
    assert split_at(POLL, 3) == (None, POLL)
    assert split_at(POLL, 7) == (POLL, None)
    applied, new = split_at(POLL, 4)
    assert applied is not None
    assert new is not None
    assert ([r.offset for r in applied.records], [r.offset for r in new.records]) == ([3], [4, 6])
    with pytest.raises(GapError) as gap:
        split_at(POLL, 2)
    assert gap.value.gaps == {("runs", 0): 2}


def test_missing_offsets_are_named_by_partition() -> None:
    needed = {("runs", 0): 5, ("runs", 1): 5, ("runs", 2): 5}
    assert missing({("runs", 0): 5, ("runs", 1): 2}, needed) == {("runs", 1): (2, 5), ("runs", 2): (0, 5)}
    assert greatest({("runs", 0): 1, ("runs", 1): 2}, {("runs", 0): 3}) == {("runs", 0): 3, ("runs", 1): 2}


def test_tables_may_lag_behind_the_log_but_never_lead_it() -> None:
    ends = {("runs", 0): 5, ("runs", 1): 2}
    refuse_ahead({}, ends)
    refuse_ahead(ends, ends)
    with pytest.raises(ForeignLogError, match="partition 1 of runs is applied up to 4 but ends at 2"):
        refuse_ahead({("runs", 0): 5, ("runs", 1): 4}, ends)
    with pytest.raises(ForeignLogError):
        refuse_ahead({("runs", 2): 1}, ends)
