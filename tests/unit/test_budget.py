"""Within one process, the request budget has an even pace, limited leases, and pauses."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everyrun.extend.budget import GET, RUN, SLICE, Budget, OwnTurns
from everyrun.extend.client import Extend, ExtendError
from everyrun.settings import Settings


class Noted(OwnTurns):
    """Fake turns that record their calls."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.leased: list[int] = []
        self.paused: list[tuple[str, float]] = []

    async def lease(self, category: str, count: int) -> list[float]:
        self.leased.append(count)
        return await super().lease(category, count)

    async def pause(self, category: str, seconds: float) -> None:
        self.paused.append((category, seconds))
        await super().pause(category, seconds)


@given(rate=st.floats(0.5, 1000), leases=st.lists(st.tuples(st.integers(1, 50), st.floats(0, 3)), max_size=20))
def test_turns_of_one_process_are_evenly_spaced(rate, leases) -> None:
    now = 0.0

    async def all_turns() -> list[float]:
        nonlocal now
        turns, found = OwnTurns(rate, lambda: now), []
        for count, later in leases:
            now += later
            found += [now + wait for wait in await turns.lease(GET, count)]
        return found

    assert all(later - one >= 0.999 / rate for one, later in pairwise(asyncio.run(all_turns())))


async def test_lease_has_a_turn_for_each_waiting_request_up_to_a_slice() -> None:
    noted = Noted(200.0)
    budget = Budget(noted, 200.0)
    began = time.monotonic()
    await asyncio.gather(*(budget.turn(GET) for _ in range(120)))
    assert time.monotonic() - began >= 119 / 200 - 0.01
    assert sum(noted.leased) == 120
    assert max(noted.leased) == int(200 * SLICE)
    assert len(noted.leased) <= 5
    await budget.turn(RUN)
    assert noted.leased[-1] == 1


async def test_pause_delays_waiting_requests_of_its_category_only() -> None:
    noted = Noted(20.0)
    budget = Budget(noted, 20.0)
    waiting = [asyncio.create_task(budget.turn(GET)) for _ in range(5)]
    await waiting[0]
    began = time.monotonic()
    await budget.pause(GET, 0.5)
    await budget.turn(RUN)
    assert not any(task.done() for task in waiting[1:])
    await asyncio.gather(*waiting)
    assert time.monotonic() - began >= 0.5
    assert noted.paused == [(GET, 0.5)]


async def test_pause_has_a_maximum_length() -> None:
    noted = Noted(1.0)
    await Budget(noted, 1.0).pause(GET, 1e9)
    assert noted.paused == [(GET, 3600.0)]


async def test_cancelled_requests_leave_no_burst() -> None:
    budget = Budget(OwnTurns(40.0), 40.0)
    given_up = [asyncio.create_task(budget.turn(GET)) for _ in range(10)]
    await asyncio.sleep(0)
    for task in given_up:
        task.cancel()
    await asyncio.gather(*given_up, return_exceptions=True)
    await asyncio.sleep(0.6)
    began = time.monotonic()
    for _ in range(5):
        await budget.turn(GET)
    assert time.monotonic() - began >= 4 / 40 - 0.01


@pytest.mark.parametrize("header", ["0.4", None])
async def test_429_pauses_every_get_and_is_retried(header) -> None:
    answers = [httpx.Response(429, headers={} if header is None else {"retry-after": header})]
    noted = Noted(100.0)

    def answer(_request: httpx.Request) -> httpx.Response:
        return answers.pop(0) if answers else httpx.Response(200, json={"id": "r"})

    async with Extend(Settings(), httpx.MockTransport(answer), budget=Budget(noted, 100.0)) as extend:
        assert await extend.get_run("r") == b'{"id":"r"}'
        assert noted.paused == [(GET, 0.25 if header is None else 0.4)]
        assert extend.sent[GET] == 2


async def test_missing_run_is_requested_once() -> None:
    async with Extend(Settings(), httpx.MockTransport(lambda _: httpx.Response(404, json={}))) as extend:
        with pytest.raises(ExtendError) as raised:
            await extend.get_run("r")
        assert raised.value.status == 404
        assert extend.sent[GET] == 1
