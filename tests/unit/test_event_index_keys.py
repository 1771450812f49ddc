"""Keys of the event index."""

from __future__ import annotations

import pytest

from everyrun.replay.history.event_index_keys import EventLocation, subjects_of


@pytest.mark.parametrize("location", [("runs", 7, 123_456_789_012), ("batches", 0, 0), ("quarantine", 9_999, 1)])
def test_a_location_survives_the_way_to_a_number_and_back(location: tuple[str, int, int]) -> None:
    number = EventLocation(*location).number()
    assert EventLocation.of(number) == location
    assert number < 2**63, "Postgres keeps it as a bigint"


def test_an_event_that_cannot_be_decoded_mentions_nothing() -> None:
    bad = type("Bad", (), {"value": b"{", "key": b"k", "headers": (), "offset": 1})()
    assert subjects_of("batches", bad) == subjects_of("runs", bad) == (set(), None)
