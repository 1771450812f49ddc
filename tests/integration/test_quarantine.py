"""Decisions about quarantined messages over HTTP, on a real Kafka and Postgres: first the events, then the table."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest
from aiokafka.errors import KafkaTimeoutError
from pydantic import SecretStr

from everyrun.log.observation import SERVICE, interpret
from everyrun.log.quarantine import quarantined
from everyrun.projection import tables
from everyrun.projection.apply import apply
from everyrun.query.api import query_api
from everyrun.settings import Settings
from everyrun.store.pool import connection_setup
from everyrun.submission.api.submissions import submission_api
from tests.memory_log import MemoryLog
from tests.records import LOG, at, in_polls, lay_out, run_event

TOKEN = "t" * 20
RUN = {"object": "workflow_run", "id": "run_1", "status": "PROCESSED", "batchId": "batch_1", "metadata": {}}
GOOD = json.dumps({"eventId": "event_1", "eventType": "workflow_run.completed", "payload": RUN}).encode()


class World:
    """The APIs of both services over one database, and a projection that follows the log."""

    def __init__(self, database: str, pool: Any, connection: Any) -> None:
        settings = Settings(postgres_dsn=SecretStr(database), api_token=SecretStr(TOKEN))
        self.log = MemoryLog()
        self.connection = connection
        nothing: Any = None
        self.apps = [query_api(settings, pool), submission_api(settings, pool, nothing, self.log, nothing, nothing)]

    async def follow(self) -> None:
        """Rebuild the tables from the whole log."""
        await self.connection.execute(
            "truncate quarantine, decisions, applied_offsets, results, unmatched_runs, batches, submissions"
        )
        aside: list[Any] = []

        async def set_aside(poison: Any) -> None:
            aside.extend(poison)

        for group in in_polls(lay_out(self.log.records), random.Random(1)):
            await apply(self.connection, group, LOG, set_aside)

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        app = self.apps[method == "POST"]
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t", headers=headers) as http:
            return await http.request(method, path, **more)

    async def decide(self, what: str, *sources: str, reason: str = "because") -> list[tuple[str, str]]:
        body = {"sources": list(sources), "reason": reason, "by": "ann"}
        answer = await self.ask("POST", f"/v1/quarantine/{what}", json=body)
        assert answer.status_code == 200, answer.text
        await self.follow()
        return [(line["source"], line["outcome"]) for line in answer.json()["decided"]]

    async def states(self) -> dict[str, str]:
        messages = (await self.ask("GET", "/v1/quarantine")).json()["messages"]
        return {message["source"]: message["state"] for message in messages}


@pytest.fixture
async def world(database: str) -> AsyncIterator[World]:
    connection = await asyncpg.connect(database, server_settings={"search_path": "everyrun"})
    await tables.setup_connection(connection)
    async with asyncpg.create_pool(database, min_size=1, max_size=4, init=connection_setup) as pool:
        world = World(database, pool, connection)
        run = run_event("run_2", "batch_2", "PROCESSED", 3, key=None)
        given: dict[str, Any] = {"headers": [], "time": at(1), "service": SERVICE}
        await world.log.append(
            [
                # As if earlier rules had not understood the message.
                quarantined(source="webhook/good", topic="webhook", reason="an older rule", raw=GOOD, **given),
                interpret(b"\xff\xfe", [], at(2)).record or pytest.fail("understood"),
                quarantined(
                    **{**given, "headers": [(name, value.decode()) for name, value in run.headers]},
                    source="runs/1/5",
                    topic="runs",
                    partition=1,
                    offset=5,
                    reason="CharacterNotInRepertoireError (22021)",
                    raw=run.value,
                    message_key=run.key,
                ),
            ]
        )
        await world.follow()
        yield world
    await connection.close()


async def test_messages_are_listed_by_reason_and_shown_whole(world: World) -> None:
    assert set((await world.states()).values()) == {"OPEN"}
    reasons = (await world.ask("GET", "/v1/quarantine/reasons", params={"state": "OPEN"})).json()["reasons"]
    assert {row["reason"]: row["messages"] for row in reasons}["not UTF-8 text"] == 1
    one = (await world.ask("GET", "/v1/quarantine", params={"reason": "older", "limit": 1})).json()
    assert [message["source"] for message in one["messages"]] == ["webhook/good"]
    assert one["next_cursor"] is None
    first = (await world.ask("GET", "/v1/quarantine", params={"limit": 2})).json()
    rest = (await world.ask("GET", "/v1/quarantine", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert len(first["messages"]) == 2
    assert len(rest["messages"]) == 1
    shown = (await world.ask("GET", "/v1/quarantine/webhook/good")).json()
    assert (shown["text"], base64.b64decode(shown["raw"])) == (GOOD.decode(), GOOD)
    assert (await world.ask("GET", "/v1/quarantine/webhook/none")).status_code == 404


async def test_a_retry_publishes_understood_messages_and_keeps_the_others(world: World) -> None:
    binary = next(source for source in await world.states() if source not in ("webhook/good", "runs/1/5"))
    outcomes = await world.decide("retry", "webhook/good", binary, "runs/1/5", "webhook/none")
    assert [outcome for _, outcome in outcomes] == ["published", "not-understood", "published", "unknown"]
    assert await world.states() == {"webhook/good": "RETRIED", binary: "OPEN", "runs/1/5": "RETRIED"}
    unmatched = await world.connection.fetch("select run_id from unmatched_runs order by 1")
    assert [row["run_id"] for row in unmatched] == ["run_1", "run_2"]
    shown = (await world.ask("GET", f"/v1/quarantine/{binary}")).json()
    assert shown["reason"] == "not UTF-8 text"
    (decision,) = shown["decisions"]
    assert (decision["kind"], decision["decided_by"], decision["reason"]) == (
        "quarantine-retried",
        "ann (bootstrap)",
        "because",
    )


async def test_two_retries_publish_the_same_records(world: World) -> None:
    for _ in range(2):
        assert await world.decide("retry", "webhook/good", "runs/1/5") == [
            ("webhook/good", "published"),
            ("runs/1/5", "published"),
        ]
    runs = [record for record in world.log.records if record.topic == "runs"]
    assert runs[:2] == runs[2:]
    assert await world.connection.fetchval("select count(*) from unmatched_runs") == 2


async def test_a_retried_message_that_cannot_be_stored_is_open_again(world: World) -> None:
    await world.decide("retry", "runs/1/5")
    message = [record for record in world.log.records if record.topic == "quarantine"][2]
    await world.log.append([message])
    await world.follow()
    assert (await world.states())["runs/1/5"] == "OPEN"


async def test_a_discarded_message_is_kept_with_the_decision(world: World) -> None:
    assert await world.decide("discard", "webhook/good", "webhook/none", reason="a test of mine") == [
        ("webhook/good", "discarded"),
        ("webhook/none", "unknown"),
    ]
    assert (await world.states())["webhook/good"] == "DISCARDED"
    assert await world.decide("discard", "webhook/good") == [("webhook/good", "not-open")]
    shown = (await world.ask("GET", "/v1/quarantine/webhook/good")).json()
    assert base64.b64decode(shown["raw"]) == GOOD
    assert [d["reason"] for d in shown["decisions"]] == ["a test of mine"]
    # If Extend sends the message again, it stays discarded. A person can still retry it.
    await world.log.append([record for record in world.log.records if record.key == b"webhook/good"][:1])
    await world.follow()
    assert (await world.states())["webhook/good"] == "DISCARDED"
    assert await world.decide("retry", "webhook/good") == [("webhook/good", "published")]
    assert (await world.states())["webhook/good"] == "RETRIED"


async def test_without_kafka_no_decision_is_made(world: World) -> None:
    world.log.error = KafkaTimeoutError()
    body = {"sources": ["webhook/good"], "reason": "because"}
    for what in ("retry", "discard"):
        answer = await world.ask("POST", f"/v1/quarantine/{what}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (503, "UNAVAILABLE")
    assert set((await world.states()).values()) == {"OPEN"}


async def test_invalid_requests_are_refused(world: World) -> None:
    answer = await world.ask("POST", "/v1/quarantine/discard", json={"sources": ["webhook/good"]})
    assert (answer.status_code, answer.json()["field"]) == (422, "reason")
    for body in ({"sources": []}, {"sources": ["a\x00"]}, {"sources": ["a"], "other": 1}):
        assert (await world.ask("POST", "/v1/quarantine/retry", json=body)).status_code == 422
