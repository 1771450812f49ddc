"""Every API refuses unknown query parameters, wrong kinds and missing fields, and names each."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from everyrun.cli.signals import StoppedError, until_stopped
from everyrun.query.api import query_api
from everyrun.replay.api import rate_of, replay_api
from everyrun.settings import Settings
from everyrun.submission.api.request_body import bad_rows_error
from everyrun.submission.api.submissions import submission_api
from everyrun.submission.intake.accept import BadRowsError
from everyrun.submission.intake.rows import BadRow

TOKEN = "a-token-of-some-length"
SETTINGS = Settings(api_token=SecretStr(TOKEN))
#: A database and other parts that no refused request reaches.
NOTHING: Any = None


async def call(app: Any, method: str, path: str, **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://service", headers=headers
    ) as http:
        return await http.request(method, path, **more)


def apis() -> dict[str, Any]:
    return {
        "query": query_api(SETTINGS, NOTHING),
        "replay": replay_api(SETTINGS, NOTHING, NOTHING),
        "submission": submission_api(SETTINGS, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING),
    }


@pytest.mark.parametrize(
    ("service", "path", "name", "hint"),
    [
        ("query", "/v1/results?stauts=FAILED", "stauts", "did you mean status?"),
        ("query", "/v1/submissions/sub_1/progress?x=1", "x", "this call has none"),
        ("replay", "/v1/jobs?state=DONE", "state", "the parameters are: limit"),
        ("submission", "/v1/submissions?status=x", "status", "the parameters are: "),
    ],
)
async def test_an_unknown_query_parameter_is_refused_by_name(service: str, path: str, name: str, hint: str) -> None:
    answer = await call(apis()[service], "GET", path)
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, "INVALID_REQUEST", name)
    assert hint in answer.json()["message"]


async def test_a_wrong_kind_of_job_names_the_field_and_the_kinds() -> None:
    for body, text in (
        ({"kind": "rebuidl"}, "'rebuidl' is unknown; it must be one of: rebuild, audit"),
        ({}, "is missing"),
    ):
        answer = await call(apis()["replay"], "POST", "/v1/jobs", json=body)
        assert (answer.status_code, answer.json()["field"]) == (422, "kind"), answer.text
        assert text in answer.json()["message"]


@pytest.mark.parametrize("body", [{"json": {}}, {}])
async def test_a_missing_field_is_named_even_if_the_whole_body_is_missing(body: dict[str, Any]) -> None:
    answer = await call(apis()["submission"], "POST", "/v1/workflows/w/pause", **body)
    assert (answer.status_code, answer.json()["field"]) == (422, "reason"), answer.text
    assert answer.json()["message"] == "reason: is missing"


@pytest.mark.parametrize("kind", ["archive", "archive-verify"])
async def test_a_job_on_an_archive_needs_one(kind: str) -> None:
    """The job was accepted, and failed later."""
    answer = await call(apis()["replay"], "POST", "/v1/jobs", json={"kind": kind})
    assert (answer.status_code, answer.json()["field"]) == (422, "kind"), answer.text
    assert "EVERYRUN_ARCHIVE_TO" in answer.json()["message"]


def test_the_rate_of_a_job_that_ended_is_its_average() -> None:
    started = datetime(2026, 1, 1, tzinfo=UTC)
    row = {"started_at": started, "ended_at": None, "records_done": 500, "rate": 3.0}
    assert rate_of(row) == 3.0
    assert rate_of({**row, "ended_at": started + timedelta(seconds=10)}) == 50.0


@pytest.mark.parametrize(
    ("count", "text"),
    [(1, "1 bad row, so nothing was accepted"), (3, "3 bad rows, so nothing was accepted; the first 1 are listed")],
)
def test_bad_rows_are_counted_in_plain_english(count: int, text: str) -> None:
    assert str(bad_rows_error(BadRowsError(count, [BadRow(1, "a", "file", "is missing")]))) == text


async def test_a_signal_is_named_when_it_stops_a_command() -> None:
    said = []

    async def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as stopped:
            said.extend(stopped.args)
            raise

    with pytest.raises(StoppedError):
        await until_stopped(work())
    assert said == ["SIGTERM"]
