"""A failed delivery is retried later and later until its time ends; a dead receiver gets one request at a time."""

from __future__ import annotations

from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everyrun.notifier.retrying import (
    MAX_PAUSE,
    MAX_RETRY_AFTER,
    OPENS_AFTER,
    Next,
    Outcome,
    backoff,
    next_state,
    pause,
    requests_at_once,
    retry_after,
)

WAITS: dict[str, Any] = {"first": 5.0, "most": 3600.0, "chance": 0.0}
DAYS = 3 * 86_400.0
chances = st.floats(0, 1)


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_any_2xx_is_a_success(status: int) -> None:
    assert next_state(Outcome(status), 1, 0.0, **WAITS) == Next("delivered")


@pytest.mark.parametrize("outcome", [*(Outcome(s) for s in (199, 301, 400, 401, 404, 410, 429, 500)), Outcome(None)])
def test_anything_else_is_retried(outcome: Outcome) -> None:
    assert next_state(outcome, 1, DAYS, **WAITS) == Next("waiting", 5.0)


def test_the_waits_double_up_to_the_maximum_for_as_long_as_the_setting_says() -> None:
    waits, left, attempts = [], DAYS, 0
    while True:
        attempts += 1
        after = next_state(Outcome(500), attempts, left, **WAITS)
        if after.state == "given_up":
            break
        waits.append(after.seconds)
        left -= after.seconds
    assert waits[:5] == [5, 10, 20, 40, 80]
    assert set(waits[11:]) == {3600}
    assert DAYS - 3600 <= sum(waits) <= DAYS


@given(st.integers(1, 10_000), chances)
def test_chance_spreads_the_waits_by_up_to_a_quarter(failures: int, chance: float) -> None:
    least = backoff(failures, 5.0, 3600.0, 0.0)
    assert least <= backoff(failures, 5.0, 3600.0, chance) <= least * 1.25


def test_a_receiver_that_asks_for_more_time_gets_it_within_limits() -> None:
    assert next_state(Outcome(429, retry_after=40), 1, DAYS, **WAITS).seconds == 40
    assert next_state(Outcome(429, retry_after=1), 1, DAYS, **WAITS).seconds == 5
    assert next_state(Outcome(503, retry_after=1e9), 1, DAYS, **WAITS).seconds == MAX_RETRY_AFTER
    assert next_state(Outcome(503, retry_after=40), 1, 30.0, **WAITS).state == "given_up"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("30", 30.0),
        (" 30 ", 30.0),
        ("1.5", None),
        ("9" * 400, MAX_RETRY_AFTER),
        ("²", None),
        (formatdate(1_000_060, usegmt=True), 60.0),
        (formatdate(999_000, usegmt=True), 0.0),
        ("Thu, 01 Jan 1970 00:00:00", 0.0),
    ],
)
def test_retry_after_holds_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, 1_000_000.0) == seconds


def test_the_circuit_opens_after_some_failures_and_then_allows_one_request_at_a_time() -> None:
    assert [requests_at_once(failures, 8) for failures in (0, OPENS_AFTER - 1, OPENS_AFTER, 1000)] == [8, 8, 1, 1]
    assert pause(OPENS_AFTER - 1, 5.0, 3600.0, 1.0) == 0.0
    assert pause(OPENS_AFTER, 5.0, 3600.0, 0.0) == 5.0
    assert pause(OPENS_AFTER + 2, 5.0, 3600.0, 0.0) == 20.0


@given(st.integers(OPENS_AFTER, 1_000_000), chances)
def test_a_receiver_that_comes_back_is_noticed_soon(failures: int, chance: float) -> None:
    assert 0 < pause(failures, 5.0, 3600.0, chance) <= MAX_PAUSE * 1.25
