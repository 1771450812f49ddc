"""``match`` guesses nothing."""

from __future__ import annotations

from everyrun.projection.rules.match import (
    BATCH_UNKNOWN,
    NO_BATCH,
    NO_KEY,
    OTHER_BATCH,
    Batch,
    Unmatched,
    match,
    unique_by_attempt,
)
from everyrun.projection.rules.merge import Binding


def test_match_guesses_nothing() -> None:
    batch = Batch("batch_1", "c1", 1)
    key = Binding("s:7", "c1", 1, "i")
    assert match("batch_1", batch, [key]) == ["s:7"]
    assert match(None, None, [key]) == Unmatched(NO_BATCH)
    assert match("batch_1", None, [key]) == Unmatched(BATCH_UNKNOWN)
    assert match("batch_1", batch, []) == Unmatched(NO_KEY)
    assert match("batch_1", batch, [Binding("s:7", "c1", 2, "i")]) == Unmatched(OTHER_BATCH)
    assert match("batch_1", batch, [Binding("s:7", "c2", 1, "i")]) == Unmatched(OTHER_BATCH)


def test_only_bindings_to_this_attempt_count_in_the_order_seen() -> None:
    batch = Batch("batch_1", "c1", 1)
    seen = [Binding("s:9", "c1", 1, "i"), Binding("s:1", "c2", 1, "i"), Binding("s:7", "c1", 1, "i")]
    assert match("batch_1", batch, unique_by_attempt(seen)) == ["s:9", "s:7"]
    assert unique_by_attempt([*seen, *seen]) == [seen[0], seen[2], seen[1]]
