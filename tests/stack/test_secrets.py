"""Plant secrets and provoke errors everywhere: no secret appears outside the texts that must keep it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from everyrun.cli import job
from everyrun.cli.demo import SHORT
from everyrun.embedded.stack import Options, Stack
from everyrun.extend.signature import sign
from everyrun.log import topics
from everyrun.log.reading import end_offsets
from everyrun.settings import Settings
from everyrun.store import tokens
from tests.conftest import eventually

#: Secrets that are submitted with inputs or sent as tokens.
SIGNATURE, USER, PASSWORD, GUESS = (
    "planted-signature",
    "planted-user",
    "planted-file-password",
    "planted-guess-of-a-key",
)
FAULTS = "fail=0.2,submit_429=0.2,submit_5xx=0.2,get_5xx=0.2,garbage=0.2,drop=0.3,corrupt=0.2,url_expired=0.5"


@pytest.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    env = {**SHORT, "EVERYRUN_CHUNK_MAX_INPUTS": "10"}
    folder = tmp_path_factory.mktemp("secrets")
    async with Stack(Options(folder, run_seconds="0.1:0.5", faults=FAULTS, seed=5, env=env)) as stack:
        yield stack


def _rows(count: int) -> str:
    rows: list[dict[str, Any]] = [
        {
            "id": f"doc-{n}",
            "file": {
                "url": f"https://{USER}:x@files.example.com/{n}.pdf?X-Amz-Signature={SIGNATURE}",
                "settings": {"password": PASSWORD},
            },
        }
        for n in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


async def _provoke(stack: Stack, http: httpx.AsyncClient, token: str) -> list[str]:
    """Make calls with secrets that are refused; return the answers."""
    at = stack.endpoints
    submissions, hook = f"{at['submission_url']}/v1/submissions", f"{at['bridge_url']}/webhooks/extend"
    ndjson = {"content-type": "application/x-ndjson"}
    mine = {"authorization": f"Bearer {token}"}
    guess = {"authorization": f"Bearer {GUESS}"}
    wrong = {"workflow_id": "workflow_of_somebody_else"}
    bad = _rows(2) + '{"file": {"url": "ftp://x/?s=' + SIGNATURE + '", "password": "' + PASSWORD + '"}}\n{"file": 1'
    stamp = str(int(time.time())).encode()
    garbage = b"\xff not json"
    signed = {
        "x-extend-request-timestamp": stamp.decode(),
        "x-extend-request-signature": sign(stamp, garbage, at["webhook_secret"].encode()),
        "authorization": f"Bearer {GUESS}",
        "cookie": GUESS,
    }
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", submissions, {"params": wrong, "content": bad, "headers": ndjson}),
        ("POST", submissions, {"params": wrong, "content": b"\x00" + bad.encode(), "headers": ndjson}),
        ("POST", submissions, {"params": wrong, "json": {"inputs": [{"file": {"url": bad}}], "x": SIGNATURE}}),
        ("POST", submissions, {"params": wrong, "content": _rows(3), "headers": {**ndjson, **mine}}),
        ("GET", f"{at['query_url']}/v1/results", {"headers": guess, "params": {"cursor": SIGNATURE}}),
        ("GET", f"{at['query_url']}/v1/results", {"headers": mine}),
        ("GET", f"{at['query_url']}/v1/results", {}),
        ("GET", f"{at['query_url']}/v1/submissions/none/report", {}),
        ("POST", hook, {"content": garbage, "headers": signed}),
        ("POST", hook, {"content": garbage, "headers": guess}),
        *(
            ("GET", f"{at[f'{name}_url']}{path}", {})
            for name in ("submission", "query", "bridge")
            for path in ("/readyz", "/healthz", "/metrics", "/openapi.json", "/nothing")
        ),
    ]
    answers = []
    for method, url, more in calls:
        answer = await http.request(method, url, **more)
        assert answer.status_code != 500, (url, answer.text)
        answers.append(f"{answer.headers} {answer.text}")
    # Extend has no workflow with this id.
    refused = await http.post(submissions, params=wrong, content=_rows(3), headers=ndjson)
    assert refused.status_code == 422, refused.text
    return [*answers, refused.text]


async def _break(stack: Stack) -> None:
    """Kill Postgres, so that the services log and answer errors."""
    pid = stack.part("postgres").pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: stack.part("postgres").pid not in (None, pid), "Postgres is back", 90)


async def _topics(bootstrap: str) -> str:
    """Return every record of every topic as text: key, value and headers."""
    settings = Settings(kafka_bootstrap=bootstrap)
    ends = await end_offsets(settings, [topic.name for topic in topics.declared()])
    left = {TopicPartition(settings.topic(name), number): end for (name, number), end in ends.items() if end}
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign(list(left))
        found = []
        async with asyncio.timeout(60):
            while left:
                for part, records in (await consumer.getmany(timeout_ms=200)).items():
                    found += [f"{r.topic} {r.key!r} {r.value!r} {r.headers!r}" for r in records]
                    if records[-1].offset + 1 >= left[part]:
                        del left[part]
                        consumer.pause(part)
        return "\n".join(found)
    finally:
        await consumer.stop()


async def _tables(dsn: str) -> str:
    """Return every row of every table and view of the result tables as text."""
    connection = await asyncpg.connect(dsn)
    try:
        names = await connection.fetch(
            "select table_name from information_schema.tables where table_schema = 'everyrun' order by 1"
        )
        found = []
        for name in (row["table_name"] for row in names):
            rows = await connection.fetch(f'select t::text as row from everyrun."{name}" t')
            found += [f"{name} {row['row']}" for row in rows]
        return "\n".join(found)
    finally:
        await connection.close()


async def test_secrets_appear_only_where_they_are_kept(stack: Stack) -> None:
    at = stack.endpoints
    connection = await asyncpg.connect(at["postgres_dsn"])
    token = await tokens.create(connection, "reader", ["read"], None, "a test")
    await connection.close()
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {at['api_token']}"}, timeout=60) as http:
        answers = await _provoke(stack, http, token)
        ndjson = {"content-type": "application/x-ndjson"}
        accepted = await http.post(
            f"{at['submission_url']}/v1/submissions",
            params={"workflow_id": at["workflow_id"]},
            content=_rows(30),
            headers=ndjson,
        )
        submission_id = accepted.json()["submission_id"]
        await _break(stack)

        async def some_settled() -> bool:
            report = await job.fetch_report(http, at, submission_id)
            return bool(report["open"] < report["expected"])

        await eventually(some_settled, "runs are in the tables", 120)
        for service, path in (
            ("query", f"/v1/submissions/{submission_id}/report"),
            ("query", "/v1/results?include=run"),
            ("query", "/v1/unmatched"),
            ("submission", "/v1/submissions"),
            ("submission", f"/v1/submissions/{submission_id}"),
        ):
            answer = await http.get(f"{at[f'{service}_url']}{path}")
            assert answer.status_code == 200, answer.text
            answers.append(answer.text)
    texts = {
        **{path.name: path.read_text(errors="replace") for path in (stack.data_dir / "logs").iterdir()},
        "topics": await _topics(at["kafka_bootstrap"]),
        "tables": await _tables(at["postgres_dsn"]),
        "answers": "\n".join(answers),
        "status.json": (stack.data_dir / "status.json").read_text(),
    }
    password = at["postgres_dsn"].partition("@")[0].rpartition(":")[2]
    keys = [at[name] for name in ("api_token", "webhook_secret", "extend_api_key")]
    secrets = [*keys, password, token, SIGNATURE, USER, PASSWORD, GUESS]
    found = {(source, secret) for source, text in texts.items() for secret in secrets if secret in text}
    assert found == set(), {source: _around(texts[source], secret) for source, secret in found}
    # The search covers real contents: texts that are not secret are found.
    assert "files.example.com/" in texts["topics"]
    assert "files.example.com/" in texts["tables"]
    assert "doc-" in texts["answers"]
    assert "level" in texts["submission.log"]
    assert "Traceback" not in texts["answers"]
    for name in ("endpoints.json", "stack.json"):
        assert (stack.data_dir / name).stat().st_mode & 0o777 == 0o600


def _around(text: str, secret: str) -> str:
    start = text.index(secret)
    return text[max(start - 200, 0) : start + 100]
