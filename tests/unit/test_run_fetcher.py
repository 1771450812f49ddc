"""Runs are fetched once per state, and failed ones are retried at growing intervals."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from everyrun.extend.client import Extend
from everyrun.log.cloudevents import header
from everyrun.log.observation import InvalidRunError
from everyrun.reconciler.listed_runs import ListedRun
from everyrun.reconciler.run_fetcher import Outcome, RunFetcher, poll_record
from everyrun.settings import Settings
from tests.memory_log import MemoryLog

RUN = {"object": "workflow_run", "id": "r", "status": "PROCESSED", "batchId": "b"}
SETTINGS = Settings(extend_base_url="https://extend.example", requests_per_second=1000, call_timeout=5)


class Tables:
    """A fake pool whose tables have no runs. It records the runs that are saved as gone."""

    def __init__(self) -> None:
        self.gone: list[str] = []

    async def fetch(self, _statement: str, *_arguments: Any) -> list[Any]:
        return []

    async def execute(self, _statement: str, run_id: str, _batch_id: str | None) -> None:
        self.gone.append(run_id)


class World:
    """A fetcher with fakes. ``status`` is Extend's response, ``now`` the time of its clock."""

    def __init__(self) -> None:
        self.status, self.requests, self.now = 200, 0, 0.0
        self.tables, self.log = Tables(), MemoryLog()
        extend = Extend(SETTINGS, httpx.MockTransport(self._answer))
        self.fetcher = RunFetcher(
            self.tables,  # type: ignore[arg-type]
            extend,
            self.log,  # type: ignore[arg-type]
            first_wait=10,
            clock=lambda: self.now,
        )

    def _answer(self, _request: httpx.Request) -> httpx.Response:
        self.requests += 1
        return httpx.Response(self.status, json=RUN)


async def test_each_state_of_a_run_is_fetched_once() -> None:
    world = World()
    run = ListedRun("r", "PROCESSED", "b")
    assert await world.fetcher.fetch([run]) == {"r": Outcome.FETCHED}
    assert await world.fetcher.fetch([run]) == {"r": Outcome.KNOWN}
    assert await world.fetcher.fetch([run._replace(status="FAILED")]) == {"r": Outcome.FETCHED}
    assert (world.requests, len(world.log.records)) == (2, 2)


async def test_wait_before_a_retry_doubles_up_to_an_hour() -> None:
    world = World()
    world.status = 403
    waits = []
    while len(waits) < 12:
        assert await world.fetcher.fetch_one("r", "b") is Outcome.UNAVAILABLE
        requests, began = world.requests, world.now
        while world.requests == requests:
            world.now += 10
            await world.fetcher.fetch_one("r", "b")
        waits.append(world.now - began)
    assert waits[:4] == [10, 20, 40, 80]
    assert max(waits) == 3600
    assert world.fetcher.failures("r") == 13


async def test_deleted_run_is_recorded() -> None:
    world = World()
    world.status = 404
    assert await world.fetcher.fetch_one("r", "b") is Outcome.GONE
    assert (world.tables.gone, world.log.records) == (["r"], [])


def test_id_of_a_poll_record_has_run_time_and_content() -> None:
    body = json.dumps(RUN).encode()
    time = "2026-01-01T00:00:00.000Z"
    first, again = poll_record(body, "r", time), poll_record(body, "r", time)
    assert first == again
    other = poll_record(json.dumps({**RUN, "status": "FAILED"}).encode(), "r", time)
    assert header(first.headers, "ce_id") != header(other.headers, "ce_id")
    with pytest.raises(InvalidRunError):
        poll_record(body, "another", time)
