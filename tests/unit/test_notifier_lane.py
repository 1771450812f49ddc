"""A lane sends a limited number of requests at a time, and gives back what a failing receiver would not take."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from typing import Any

from everyrun.notifier.lane import Claim, Ended, Lane, Receiver, said, stored
from everyrun.notifier.metrics import Metrics
from everyrun.notifier.retrying import OPENS_AFTER, Outcome
from everyrun.notifier.transport import Target
from everyrun.settings import Settings
from everyrun.store.sql import name_of

SETTINGS = Settings(notify_at_once=4, notify_retry_first=1, notify_retry_for=100)
TARGET = Target("https://app.example.com/", "extend", "wss_0123456789abcdef")


class Deliveries:
    """The part of the database that a lane uses: deliveries that are due, and what is stored of them."""

    def __init__(self, count: int) -> None:
        self.due = [f"ntf_{number:03d}" for number in range(count)]
        self.stored: list[tuple[str, str]] = []
        self.released: list[str] = []
        self.failures = 0

    async def fetch(self, statement: str, _receiver_id: str, wanted: int, _lease: float) -> list[dict[str, Any]]:
        assert name_of(statement).startswith("claim ")
        taken, self.due = self.due[:wanted], self.due[wanted:]
        return [{"notification_id": one, "attempts": 1, "seconds_left": 100.0, "body": b"{}"} for one in taken]

    async def execute(self, statement: str, _receiver_id: str, *columns: Any) -> None:
        name = name_of(statement).partition(" ")[0]
        if name == "store_outcomes":
            self.stored += zip(columns[0], columns[2], strict=True)
        elif name == "release":
            self.released += columns[0]
        else:
            assert name == "has_succeeded"
            self.failures = 0

    async def fetchval(self, statement: str, _receiver_id: str, number: int, _error: str, _pause: float) -> int:
        assert name_of(statement).startswith("has_failed ")
        self.failures += number
        return self.failures


class Answers:
    """A transport that answers every request in the same way, and counts how many are open."""

    def __init__(self, outcome: Outcome, held: bool = False) -> None:
        self.outcome = outcome
        self.sent: Counter[str] = Counter()
        self.open = self.most_open = 0
        self.held = asyncio.Event()
        if not held:
            self.held.set()

    async def send(self, _target: Target, identifier: str, _body: bytes) -> Outcome:
        self.sent[identifier] += 1
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        await self.held.wait()
        await asyncio.sleep(0)
        self.open -= 1
        return self.outcome


def lane(deliveries: Deliveries, answers: Answers, failures: int = 0, pause: float = 0.0) -> Lane:
    deliveries.failures = failures
    receiver = Receiver("rcv_1", TARGET, failures, pause, time.monotonic())
    database: Any = deliveries
    transport: Any = answers
    return Lane(SETTINGS, database, transport, Metrics(), receiver)


async def test_everything_that_is_due_is_sent_once_a_few_at_a_time() -> None:
    deliveries, answers = Deliveries(50), Answers(Outcome(200, seconds=0.01))
    await asyncio.wait_for(lane(deliveries, answers).run(), 10)
    assert answers.sent == Counter(f"ntf_{number:03d}" for number in range(50))
    assert sorted(deliveries.stored) == [(f"ntf_{number:03d}", "delivered") for number in range(50)]
    assert answers.most_open == 4
    assert deliveries.released == []


async def test_when_the_circuit_opens_the_claims_are_given_back() -> None:
    deliveries, answers = Deliveries(50), Answers(Outcome(503, seconds=0.01))
    await asyncio.wait_for(lane(deliveries, answers).run(), 10)
    assert OPENS_AFTER <= deliveries.failures == sum(answers.sent.values()) <= OPENS_AFTER + 4
    assert {state for _, state in deliveries.stored} == {"waiting"}
    # Every claimed delivery was either sent or given back.
    claimed = {f"ntf_{number:03d}" for number in range(50)} - set(deliveries.due)
    assert claimed == set(answers.sent) | set(deliveries.released)


async def test_an_open_circuit_sends_one_request_and_a_pause_none() -> None:
    deliveries, answers = Deliveries(50), Answers(Outcome(503, seconds=0.01))
    await asyncio.wait_for(lane(deliveries, answers, failures=OPENS_AFTER).run(), 10)
    assert (len(answers.sent), len(deliveries.due)) == (1, 49)
    await asyncio.wait_for(lane(deliveries, answers, failures=OPENS_AFTER, pause=30.0).run(), 10)
    assert (len(answers.sent), len(deliveries.due)) == (1, 49)


async def test_a_success_closes_the_circuit_and_the_rest_follows() -> None:
    deliveries, answers = Deliveries(50), Answers(Outcome(200, seconds=0.01))
    await asyncio.wait_for(lane(deliveries, answers, failures=OPENS_AFTER).run(), 10)
    assert (len(deliveries.stored), deliveries.failures) == (50, 0)


async def test_a_stopped_lane_ends_its_requests_and_gives_back_the_rest() -> None:
    deliveries, answers = Deliveries(50), Answers(Outcome(200, seconds=0.01), held=True)
    one = lane(deliveries, answers)
    running = asyncio.create_task(one.run())
    while answers.open < 4:
        await asyncio.sleep(0)
    one.stop()
    answers.held.set()
    await asyncio.wait_for(running, 10)
    assert len(deliveries.stored) == 4
    claimed = {f"ntf_{number:03d}" for number in range(50)} - set(deliveries.due)
    assert claimed == set(answers.sent) | set(deliveries.released)


def test_the_log_of_a_try_says_when_and_what_was_answered() -> None:
    claim = Claim("ntf_1", 3, 100.0, b"{}", 0.0)
    row = stored(Ended(claim, Outcome(500, "no\x00", "", 0.1234), 0.0), SETTINGS, 0.0)
    assert row[:4] == ("ntf_1", 3, "waiting", 4.0)
    entry = json.loads(row[4])
    assert entry == {
        "at": "1970-01-01T00:00:00.000Z",
        "status": 500,
        "seconds": 0.123,
        "answer": "no\ufffd",
        "error": "",
    }
    late = stored(Ended(msgspec_replace(claim, 1.0), Outcome(error="refused"), 0.0), SETTINGS, 0.0)
    assert late[2] == "given_up"


def msgspec_replace(claim: Claim, seconds_left: float) -> Claim:
    return Claim(claim.notification_id, claim.attempts, seconds_left, claim.body, claim.at)


def test_a_failure_is_said_in_words() -> None:
    assert said(Outcome(error="no answer within 30 s")) == "no answer within 30 s"
    assert said(Outcome(503, "busy")) == "answered 503: busy"
    assert said(Outcome(503)) == "answered 503"
