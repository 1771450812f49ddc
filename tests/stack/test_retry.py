"""Retrying on a whole stack: settled inputs get a new try, and every number still agrees."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from everyrun.cli import job
from everyrun.cli.demo import SHORT
from everyrun.embedded.stack import Options, Stack
from tests.conftest import eventually
from tests.stack.test_job import everyrun, settled

INPUTS = 120


@pytest.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    data_dir = tmp_path_factory.mktemp("retry")
    options = Options(
        data_dir, run_seconds="0.1:0.5", faults="fail=0.3", seed=5, env={**SHORT, "EVERYRUN_CHUNK_MAX_INPUTS": "40"}
    )
    async with Stack(options) as running:
        yield running


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {stack.endpoints['api_token']}"}
    async with httpx.AsyncClient(headers=headers, timeout=60) as client:
        yield client


async def faults(stack: Stack, http: httpx.AsyncClient, given: str) -> None:
    answer = await http.put(stack.endpoints["emulator_url"] + "/_emulator/faults", json={"faults": given})
    assert answer.status_code == 200, answer.text


async def submit(
    stack: Stack, http: httpx.AsyncClient, query: str = "", url: str = "https://files.example.com/{}.pdf"
) -> str:
    rows = [
        {"id": f"doc-{n}", "file": {"url": url.format(n)}, "metadata": {"customer": n % 3, "deep": {"n": str(n)}}}
        for n in range(INPUTS)
    ]
    body = "\n".join(json.dumps(row) for row in rows)
    address = f"{stack.endpoints['submission_url']}/v1/submissions?workflow_id={stack.endpoints['workflow_id']}{query}"
    answer = await http.post(address, content=body, headers={"content-type": "application/x-ndjson"})
    assert answer.status_code == 202, answer.text
    submission_id: str = answer.json()["submission_id"]
    return submission_id


async def retry(stack: Stack, http: httpx.AsyncClient, submission_id: str, **body: Any) -> httpx.Response:
    address = f"{stack.endpoints['submission_url']}/v1/submissions/{submission_id}/retries"
    return await http.post(address, json={"reason": "fixed", **body})


async def test_a_retry_gives_failed_inputs_a_new_try_and_everything_balances(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    await faults(stack, http, "fail=0.3")
    submission_id = await submit(stack, http)
    before = await settled(http, stack, submission_id)
    failed = before["by_status"]["FAILED"]
    assert 0 < failed < INPUTS
    await faults(stack, http, "fail=0.3,accept_then_timeout=0.5")

    code, out, err = await everyrun(stack, "retry", submission_id, "--dry-run", "--reason", "fixed", "--json")
    assert code == 0, err
    preview = json.loads(out)
    assert (preview["inputs"], preview["by_status"]) == (failed, {"FAILED": failed})

    code, _, err = await everyrun(stack, "retry", submission_id, "--status", "failed", "--reason", "fixed", "--yes")
    assert code == 0, err
    assert f"Retry 1: {failed} input" in err
    report = await settled(http, stack, submission_id)
    assert report["superseded"] == failed
    left = report["by_status"].get("FAILED", 0)
    assert left < failed, "some of the new tries succeed"
    await faults(stack, http, "")
    answer = await retry(stack, http, submission_id)
    assert answer.status_code == 202, answer.text
    assert answer.json()["inputs"] == left
    report = await settled(http, stack, submission_id)
    assert report["by_status"] == {"PROCESSED": INPUTS}
    assert report["superseded"] == failed + left

    nothing = await retry(stack, http, submission_id)
    assert (nothing.status_code, nothing.json()["code"]) == (409, "NOTHING_TO_RETRY")

    connection = await asyncpg.connect(stack.endpoints["postgres_dsn"])
    try:
        input_id = await connection.fetchval(
            "select input_id from everyrun.other_runs where superseded and chunk like $1"
            " group by input_id order by count(*) desc, 1 limit 1",
            f"{submission_id}.%",
        )
    finally:
        await connection.close()
    code, out, err = await everyrun(stack, "tries", input_id, "--json")
    assert code == 0, err
    tries = json.loads(out)["tries"]
    assert len(tries) >= 2
    assert tries[0]["retry"] == 0
    assert [one["current"] for one in tries[-1]["attempts"] if one["run_id"]].count(True) == 1
    code, out, err = await everyrun(stack, "history", input_id)
    assert code == 0, err
    assert "retry 1 gives it a new try" in out.replace("\n", " ")
    code, out, err = await everyrun(stack, "audit")
    assert code == 0, out + err


async def test_a_retry_with_a_filter_sends_only_what_meets_it_and_names_the_rest(
    stack: Stack, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    await faults(stack, http, "fail=1")
    submission_id = await submit(stack, http)
    await settled(http, stack, submission_id)
    await faults(stack, http, "")
    ids = tmp_path / "ids.txt"
    ids.write_text("doc-0\ndoc-1\ndoc-3\nnobody\n")
    arguments = ("--ids", ids, "--where", "metadata.customer=0", "--reason", "customer 0", "--yes")
    code, _, err = await everyrun(stack, "retry", submission_id, *arguments)
    assert code == 0, err
    assert "nobody (NOT_FOUND)" in " ".join(err.split())
    assert "doc-1 (FAILED)" in " ".join(err.split())
    report = await settled(http, stack, submission_id)
    assert report["by_status"] == {"FAILED": INPUTS - 2, "PROCESSED": 2}
    limited = await retry(stack, http, submission_id, filter={"limit": 7, "where": {"deep.n": "5"}})
    assert limited.json()["inputs"] == 1
    limited = await retry(stack, http, submission_id, filter={"limit": 7})
    assert limited.json()["inputs"] == 7
    report = await settled(http, stack, submission_id)
    assert report["by_status"] == {"FAILED": INPUTS - 10, "PROCESSED": 10}
    listed = await http.get(f"{stack.endpoints['submission_url']}/v1/submissions/{submission_id}/retries")
    assert [one["inputs"] for one in listed.json()["retries"]] == [2, 1, 7]
    assert [one["waiting"] for one in listed.json()["retries"]] == [0, 0, 0]


async def test_two_retries_at_once_give_no_input_two_new_tries(stack: Stack, http: httpx.AsyncClient) -> None:
    await faults(stack, http, "fail=1")
    submission_id = await submit(stack, http)
    await settled(http, stack, submission_id)
    await faults(stack, http, "")
    one, two = await asyncio.gather(retry(stack, http, submission_id), retry(stack, http, submission_id))
    assert sorted((one.status_code, two.status_code)) == [202, 409], (one.text, two.text)
    report = await settled(http, stack, submission_id)
    assert report["by_status"] == {"PROCESSED": INPUTS}
    assert report["superseded"] == INPUTS


async def test_the_same_request_under_the_same_key_is_one_retry(stack: Stack, http: httpx.AsyncClient) -> None:
    await faults(stack, http, "fail=1")
    submission_id = await submit(stack, http)
    await settled(http, stack, submission_id)
    address = f"{stack.endpoints['submission_url']}/v1/submissions/{submission_id}/retries"
    body = {"reason": "again", "filter": {"ids": ["doc-1"]}}
    answers = [await http.post(address, json=body, headers={"idempotency-key": "k1"}) for _ in range(2)]
    assert [answer.json()["retry"] for answer in answers] == [1, 1]
    other = await http.post(address, json={"reason": "again"}, headers={"idempotency-key": "k1"})
    assert (other.status_code, other.json()["code"]) == (409, "IDEMPOTENCY_CONFLICT")


async def test_a_paused_submission_keeps_its_new_tries_waiting_and_says_so(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    await faults(stack, http, "fail=1")
    submission_id = await submit(stack, http)
    await settled(http, stack, submission_id)
    await faults(stack, http, "")
    urls = stack.endpoints
    pause = f"{urls['submission_url']}/v1/submissions/{submission_id}"
    assert (await http.post(pause + "/pause", json={"reason": "look first"})).status_code == 200
    assert (await retry(stack, http, submission_id, filter={"limit": 5})).status_code == 202

    async def waits() -> bool:
        progress = (await http.get(f"{urls['query_url']}/v1/submissions/{submission_id}/progress")).json()
        return progress["by_status"] == {"FAILED": INPUTS - 5, "WAITING": 5} and progress["in_transit"] == 0

    await eventually(waits, "the tables know the new tries")
    report = (await http.get(f"{urls['query_url']}/v1/submissions/{submission_id}/report")).json()
    assert report["balanced"], report["imbalances"]
    one = (await http.get(f"{urls['query_url']}/v1/results/{submission_id}:doc-0")).json()
    assert (one["status"], one["waits_for"]) == ("WAITING", "submission_paused")
    listed = (
        await http.get(f"{urls['query_url']}/v1/results?submission_id={submission_id}&status=WAITING&limit=2")
    ).json()
    more = (
        await http.get(
            f"{urls['query_url']}/v1/results?submission_id={submission_id}&status=WAITING&cursor={listed['next_cursor']}"
        )
    ).json()
    assert [row["position"] for row in (*listed["results"], *more["results"])] == [1, 2, 3, 4, 5]
    assert (await http.post(pause + "/resume", json={"reason": "go"})).status_code == 200
    report = await settled(http, stack, submission_id)
    assert report["by_status"] == {"FAILED": INPUTS - 5, "PROCESSED": 5}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"filter": {"statuses": ["PROCESSED"]}}, "filter.statuses"),
        ({"filter": {"limit": 0}}, "filter.limit"),
        ({"filter": {"unknown": 1}}, "filter.unknown"),
        ({"files": [{"id": "doc-1", "file": {"url": "ftp://x"}}]}, None),
    ],
)
async def test_a_bad_request_is_refused_by_name(
    stack: Stack, http: httpx.AsyncClient, body: dict[str, Any], field: str | None
) -> None:
    submission_id = "sub_" + "0" * 26
    answer = await retry(stack, http, submission_id, **body)
    assert answer.status_code == 422, answer.text
    assert answer.json().get("field") == field


async def test_job_helpers_agree_on_a_retried_submission_after_a_rebuild(stack: Stack, http: httpx.AsyncClient) -> None:
    await faults(stack, http, "fail=1")
    submission_id = await submit(stack, http)
    await settled(http, stack, submission_id)
    await faults(stack, http, "")
    assert (await retry(stack, http, submission_id, filter={"limit": 50})).status_code == 202
    await settled(http, stack, submission_id)
    code, out, err = await everyrun(stack, "rebuild", "--swap")
    assert code == 0, out + err
    report, comparison = await job.wait_until_agreed(http, stack.endpoints, submission_id, within=60)
    assert comparison.agrees, comparison.differences
    assert report["balanced"]
    code, out, err = await everyrun(stack, "audit")
    assert code == 0, out + err


async def test_failed_inputs_are_retried_automatically_as_often_as_the_submission_says(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    await faults(stack, http, "fail=1")
    submission_id = await submit(stack, http, "&retries=2")

    async def over() -> bool:
        progress = (await http.get(f"{stack.endpoints['query_url']}/v1/submissions/{submission_id}/progress")).json()
        return not progress["will_retry"] and progress["open"] == 0 and not progress["in_transit"]

    await eventually(over, "all automatic retries are over", 90)
    report = await settled(http, stack, submission_id)
    assert report["by_status"] == {"FAILED": INPUTS}
    assert report["superseded"] == 2 * INPUTS, "two new tries of each input"
    listed = (await http.get(f"{stack.endpoints['submission_url']}/v1/submissions/{submission_id}/retries")).json()
    assert {one["by"] for one in listed["retries"]} == {None}
    assert sum(one["inputs"] for one in listed["retries"]) == 2 * INPUTS


async def test_only_the_given_reasons_are_retried_automatically(stack: Stack, http: httpx.AsyncClient) -> None:
    await faults(stack, http, "fail=1")
    submission_id = await submit(stack, http, "&retries=1&retry_reason=NO_SUCH_REASON")

    async def over() -> bool:
        progress = (await http.get(f"{stack.endpoints['query_url']}/v1/submissions/{submission_id}/progress")).json()
        return not progress["will_retry"] and progress["open"] == 0

    await eventually(over, "the chunks were looked at", 60)
    report = await settled(http, stack, submission_id)
    assert (report["by_status"], report["superseded"]) == ({"FAILED": INPUTS}, 0)
