"""The main job on a whole stack, through the command line and the APIs, as people use them."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import httpx
import pytest
from aiokafka import AIOKafkaConsumer

from everyrun.cli import job
from everyrun.cli.demo import SHORT
from everyrun.embedded.stack import Options, Stack
from everyrun.extend.signature import sign
from tests.conftest import eventually
from tests.stack.up import environment

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    options = Options(tmp_path_factory.mktemp("job"), run_seconds="0.1:0.5", faults="fail=0.3", seed=3, env=SHORT)
    # The shell may have production's settings: the stack must use its own servers all the same.
    async with AsyncExitStack() as ending:
        with pytest.MonkeyPatch.context() as shell:
            shell.setenv("EVERYRUN_KAFKA_BOOTSTRAP", "kafka.invalid:9092")
            shell.setenv("EVERYRUN_KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
            shell.setenv("EVERYRUN_POSTGRES_DSN", "postgresql://everyrun@postgres.invalid/everyrun")
            running = await ending.enter_async_context(Stack(options))
        yield running


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {stack.endpoints['api_token']}"}
    async with httpx.AsyncClient(headers=headers, timeout=60) as client:
        yield client


async def everyrun(stack: Stack, *arguments: str | Path) -> tuple[int, str, str]:
    """Run the command line as a process; return its exit code, standard output and standard error."""
    env = environment(EVERYRUN_DATA_DIR=str(stack.data_dir), COLUMNS="80")
    command = [sys.executable, "-c", "from everyrun.cli.app import main; main()", *map(str, arguments)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, env=env, check=False)
    return done.returncode, done.stdout, done.stderr


async def settled(http: httpx.AsyncClient, stack: Stack, submission_id: str) -> dict:
    report, comparison = await job.wait_until_agreed(http, stack.endpoints, submission_id, within=60)
    assert report["open"] == 0, report
    assert report["balanced"], report
    assert comparison.agrees, comparison.differences
    return report


async def test_failed_inputs_can_be_submitted_again(stack: Stack, http: httpx.AsyncClient, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    lines = [f"doc-{n},https://files.example.com/{n}.pdf,c{n}" for n in range(60)]
    manifest.write_text("id,url,customer\n" + "\n".join(lines) + "\n")
    code, out, err = await everyrun(stack, "submit", manifest, "--metadata-columns", "customer", "--wait")
    assert code == 3, err
    submission_id = out.split()[0]
    report = await settled(http, stack, submission_id)
    failed = report["by_status"]["FAILED"]
    code, out, err = await everyrun(stack, "results", submission_id, "--format", "csv", "--status", "FAILED")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, len(rows)) == (0, failed)
    assert all(row["failure_reason"] and json.loads(row["metadata"]) for row in rows)
    again = tmp_path / "again.csv"
    again.write_text(out)
    code, out, err = await everyrun(stack, "submit", again)
    assert code == 0, err
    second = out.split()[0]
    report = await settled(http, stack, second)
    assert report["expected"] == failed
    rows = await every_result(http, stack, submission_id=second)
    assert {row["metadata"]["customer"] for row in rows} <= {f"c{n}" for n in range(60)}


async def every_result(http: httpx.AsyncClient, stack: Stack, **query: str) -> list[dict]:
    found, cursor = [], None
    while True:
        page = await http.get(
            f"{stack.endpoints['query_url']}/v1/results",
            params={**query, "limit": "7", **({"cursor": cursor} if cursor else {})},
        )
        assert page.status_code == 200, page.text
        found += page.json()["results"]
        cursor = page.json()["next_cursor"]
        if cursor is None:
            return found


async def test_submissions_with_the_same_ids_stay_apart(stack: Stack, http: httpx.AsyncClient) -> None:
    both = [(await job.submit(http, stack.endpoints, 30))["submission_id"] for _ in range(2)]
    ids = []
    for submission_id in both:
        await settled(http, stack, submission_id)
        rows = await every_result(http, stack, submission_id=submission_id)
        assert len(rows) == 30
        assert {row["submission_id"] for row in rows} == {submission_id}
        ids.append([row["external_id"] for row in rows])
    assert ids[0] == ids[1]
    found = await every_result(http, stack, external_id="invoice-000001")
    assert set(both) <= {row["submission_id"] for row in found}


async def test_a_folder_is_uploaded_once(stack: Stack, http: httpx.AsyncClient) -> None:
    code, out, err = await everyrun(stack, "submit", EXAMPLES / "documents")
    assert code == 0, err
    report = await settled(http, stack, out.split()[0])
    assert report["expected"] == 3
    before = (await http.get(f"{stack.endpoints['emulator_url']}/_emulator/stats")).json()["requests"]["write"]
    code, out, err = await everyrun(stack, "submit", EXAMPLES / "documents")
    # The same documents are submitted again only with --again.
    assert (code, out) == (5, "")
    assert f"These 3 rows were submitted before: {report['submission_id']}" in " ".join(err.split())
    assert "3 of 3 files had been uploaded before" in err
    after = (await http.get(f"{stack.endpoints['emulator_url']}/_emulator/stats")).json()["requests"]["write"]
    assert after == before
    code, out, err = await everyrun(stack, "submit", EXAMPLES / "documents", "--again")
    assert code == 0, err
    assert (await settled(http, stack, out.split()[0]))["expected"] == 3


@pytest.mark.parametrize("name", ["invoices.csv", "invoices.ndjson"])
async def test_the_examples_are_valid(stack: Stack, name: str) -> None:
    code, _, err = await everyrun(stack, "submit", EXAMPLES / name, "--dry-run")
    assert code == 0, err


async def test_errors_name_what_is_wrong(stack: Stack, tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("id,url\na,ftp://x\nb,https://files.example.com/b.pdf\n")
    for more in ((), ("--dry-run",)):
        code, _, err = await everyrun(stack, "submit", bad, *more)
        assert code == 1
        assert "file.url" in err
        assert "nothing was submitted" in err
    for arguments, code, message in (
        (("watch", "sub_nope"), 4, "no submission sub_nope"),
        (("report", "sub_nope"), 4, "no submission sub_nope"),
        (("submit", tmp_path / "nothing.csv"), 1, "no file or folder"),
        (("results", "sub_nope", "--extracted"), 2, "--format jsonl"),
        (("demo", "--faults", "dropp=1"), 2, "unknown fault"),
    ):
        found = await everyrun(stack, *arguments)
        assert (found[0], message in " ".join(found[2].split())) == (code, True), found


async def test_reports_and_results_over_http(stack: Stack, http: httpx.AsyncClient) -> None:
    url = stack.endpoints["query_url"]
    submission_id = (await job.submit(http, stack.endpoints, 40))["submission_id"]
    first = (await http.get(f"{url}/v1/submissions/{submission_id}/report")).json()
    assert (first["expected"], sum(first["by_status"].values())) == (40, 40)
    report = await settled(http, stack, submission_id)
    rows = await every_result(http, stack, submission_id=submission_id)
    assert len({row["input_id"] for row in rows}) == 40
    failed = await every_result(http, stack, submission_id=submission_id, status="FAILED")
    assert len(failed) == report["by_status"].get("FAILED", 0)
    batch_id = rows[0]["batch_id"]
    assert len(await every_result(http, stack, batch_id=batch_id)) == 40
    batch = (await http.get(f"{url}/v1/batches/{batch_id}")).json()
    assert (batch["state"], batch["settled"], batch["balanced"]) == ("SETTLED", 40, True)
    one = (await http.get(f"{url}/v1/results/{rows[0]['input_id']}")).json()
    assert one["run"]["id"] == one["run_id"]
    assert "everyrun:input" not in json.dumps(one)
    for path, status in (
        ("/v1/submissions/sub_nope/report", 404),
        ("/v1/batches/batch_nope", 404),
        ("/v1/results/sub_nope:1", 404),
        ("/v1/results?limit=0", 422),
        ("/v1/results?limit=1001", 422),
        ("/v1/results?cursor=nonsense", 422),
        ("/v1/results?submission_id=a%00b", 422),
        ("/openapi.json", 200),
    ):
        answer = await http.get(url + path)
        assert answer.status_code == status, (path, answer.text)
        assert status == 200 or set(answer.json()) >= {"code", "message"}
    for service in ("query_url", "submission_url"):
        answer = await http.get(f"{stack.endpoints[service]}/v1/submissions", headers={"authorization": "Bearer no"})
        assert answer.status_code == 401


async def test_a_result_on_the_topic_is_already_in_the_table(stack: Stack, http: httpx.AsyncClient) -> None:
    consumer = AIOKafkaConsumer(
        "everyrun.results", bootstrap_servers=stack.endpoints["kafka_bootstrap"], auto_offset_reset="latest"
    )
    await consumer.start()
    connection = await asyncpg.connect(stack.endpoints["postgres_dsn"])
    try:
        await consumer.seek_to_end()
        submission_id = (await job.submit(http, stack.endpoints, 50))["submission_id"]
        newest: dict[str, dict] = {}

        async def all_settled() -> bool:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    event = json.loads(record.value)
                    if event["submission_id"] != submission_id:
                        continue
                    assert record.key.decode() == event["input_id"]
                    version = await connection.fetchval(
                        "select version from everyrun.results where input_id = $1", event["input_id"]
                    )
                    assert version >= event["version"]
                    if newest.get(event["input_id"], event)["version"] <= event["version"]:
                        newest[event["input_id"]] = event
            return sum(event["type"] == "result-settled" for event in newest.values()) == 50

        await eventually(all_settled, "every result is on the topic", 60)
        rows = await connection.fetch("select * from everyrun.results where submission_id = $1", submission_id)
        assert {r["input_id"]: (r["run_id"], r["status"], r["version"]) for r in rows} == {
            i: (e["run_id"], e["status"], e["version"]) for i, e in newest.items()
        }
    finally:
        await connection.close()
        await consumer.stop()


async def test_the_example_consumer_prints_every_result(stack: Stack, http: httpx.AsyncClient) -> None:
    submission_id = (await job.submit(http, stack.endpoints, 20))["submission_id"]
    command = [sys.executable, str(EXAMPLES / "consumer.py"), stack.endpoints["kafka_bootstrap"], submission_id]
    # Once while the job runs, and once after it: the report is then read before the results.
    for _ in range(2):
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        printed = [line.split(": ")[0] for line in done.stdout.splitlines()]
        assert set(printed[:-1]) == {f"{submission_id}:invoice-{n:06d}" for n in range(1, 21)}
        assert printed[-1] == submission_id


async def test_a_message_in_quarantine_is_shown_retried_and_discarded(stack: Stack) -> None:
    stamp, body = str(int(time.time())), b'{"hello": "' + os.urandom(4).hex().encode() + b'"}'
    secret = stack.endpoints["webhook_secret"].encode()
    headers = {"x-extend-request-timestamp": stamp, "x-extend-request-signature": sign(stamp.encode(), body, secret)}
    async with httpx.AsyncClient() as vendor:
        url = stack.endpoints["bridge_url"] + "/webhooks/extend"
        assert (await vendor.post(url, content=body, headers=headers)).status_code == 200

    async def listed(state: str) -> list[dict]:
        code, out, err = await everyrun(stack, "quarantine", "list", "--state", state, "--json")
        assert code == 0, err
        return [m for m in json.loads(out)["messages"] if m["bytes"] == len(body)]

    (message,) = await eventually(lambda: listed("OPEN"), "it is in the quarantine", 30)
    source = message["source"]
    code, out, _ = await everyrun(stack, "quarantine", "show", source, "--raw")
    assert (code, out.encode()) == (0, body)
    code, out, _ = await everyrun(stack, "quarantine", "retry", source)
    assert (code, out.split()[0]) == (1, "not-understood")
    code, out, _ = await everyrun(stack, "quarantine", "discard", source, "--why", "a test of mine")
    assert (code, out.split()[0]) == (0, "discarded")
    assert await eventually(lambda: listed("DISCARDED"), "it is kept as discarded", 30)
    assert not await listed("OPEN")
    for wrong, code in ((("retry",), 2), (("show", "webhook/nope"), 4)):
        assert (await everyrun(stack, "quarantine", *wrong))[0] == code


async def test_a_foreign_batch_is_registered(stack: Stack, tmp_path: Path) -> None:
    rows = [
        {"file": {"url": f"https://files.example.com/{n}.pdf"}, "metadata": {"row": n, "by": "another"}}
        for n in range(4)
    ]
    headers = {
        "authorization": f"Bearer {stack.endpoints['extend_api_key']}",
        "x-extend-api-version": "2026-02-09",
    }
    async with httpx.AsyncClient(headers=headers) as other:
        answer = await other.post(
            stack.endpoints["emulator_url"] + "/workflow_runs/batch",
            json={"workflow": {"id": stack.endpoints["workflow_id"]}, "inputs": rows},
        )
    batch_id = answer.json()["batchId"]

    async def unmatched() -> list[dict]:
        code, out, err = await everyrun(stack, "unmatched", "list", "--batch", batch_id, "--json")
        assert code == 0, err
        return json.loads(out)["unmatched"]

    (first, *_) = await eventually(unmatched, "its runs are unmatched", 30)
    assert (first["reason"], first["batch_id"]) == ("batch_unknown", batch_id)
    manifest = tmp_path / "batch.ndjson"
    manifest.write_text("".join(json.dumps({"id": f"in-{n}", **row}) + "\n" for n, row in enumerate(rows)))
    code, out, err = await everyrun(stack, "register", manifest, "--batch", batch_id, "--wait")
    assert code in (0, 3), err
    submission_id = out.split()[0]
    code, out, _ = await everyrun(stack, "results", submission_id, "--format", "jsonl")
    found = {row["external_id"]: row["metadata"]["row"] for row in map(json.loads, out.splitlines())}
    assert found == {f"in-{n}": n for n in range(4)}
    await eventually(lambda: _none(unmatched), "none is unmatched any more", 30)
    code, again, _ = await everyrun(stack, "register", manifest, "--batch", batch_id)
    assert (code, again.split()[0]) == (0, submission_id)


async def _none(found: Callable[[], Awaitable[list]]) -> bool:
    return not await found()


async def test_paused_inputs_are_not_sent_until_resumed(stack: Stack, http: httpx.AsyncClient) -> None:
    workflow = stack.endpoints["workflow_id"]
    code, _, err = await everyrun(stack, "workflow", "pause", workflow, "--reason", "a new version")
    assert (code, err.startswith("Paused: 0 waiting inputs will not be sent.")) == (0, True)
    code, out, _ = await everyrun(stack, "workflow", "list", "--json")
    assert [(row["workflow_id"], row["reason"]) for row in json.loads(out)] == [(workflow, "a new version")]
    submission_id = (await job.submit(http, stack.endpoints, 10))["submission_id"]
    code, _, err = await everyrun(stack, "submission", "pause", submission_id, "--reason", "the wrong folder")
    assert (code, "Paused: 10 waiting inputs will not be sent." in err) == (0, True)
    code, _, err = await everyrun(stack, "workflow", "resume", workflow, "--reason", "it is here")
    assert (code, "Resumed: 0 waiting inputs will be sent." in err) == (0, True)
    assert "Still waiting: 10 inputs, of paused submissions" in err
    code, _, err = await everyrun(stack, "workflow", "resume", workflow, "--reason", "once more")
    assert (code, "was not paused" in err) == (0, True)
    assert (await job.fetch_report(http, stack.endpoints, submission_id))["by_status"] == {"WAITING": 10}
    code, _, err = await everyrun(stack, "submission", "resume", submission_id, "--reason", "it was right")
    assert (code, "Resumed: 10 waiting inputs will be sent." in err) == (0, True)
    await settled(http, stack, submission_id)
    assert (await everyrun(stack, "submission", "pause", "sub_nope", "--reason", "x"))[0] == 4


async def test_a_person_decides_a_call_of_unknown_outcome(stack: Stack, http: httpx.AsyncClient) -> None:
    faults = stack.endpoints["emulator_url"] + "/_emulator/faults"
    (await http.put(faults, json={"faults": "accept_then_timeout=1,drop=1,list_lag=3600"})).raise_for_status()
    try:
        submission_id = (await job.submit(http, stack.endpoints, 3))["submission_id"]

        async def in_doubt() -> list[dict]:
            code, out, err = await everyrun(stack, "doubt", "list", "--submission", submission_id, "--json")
            assert code == 0, err
            return json.loads(out)

        (doubt,) = await eventually(in_doubt, "the call is in doubt", 30)
        chunk = doubt["chunk"]
        assert (doubt["state"], doubt["inputs"], doubt["runs"]) == ("in_doubt", 3, 0)
        code, out, _ = await everyrun(stack, "doubt", "show", chunk)
        assert (code, "none: no known run names this chunk" in out) == (0, True)
        code, _, err = await everyrun(stack, "doubt", "adopt", chunk, "batch_nope", "--reason", "a guess")
        assert (code, "batch_nope" in err) == (1, True)
        code, _, err = await everyrun(stack, "doubt", "discard", chunk, "--reason", "out of date")
        assert (code, "force" in err) == (1, True)
        code, out, _ = await everyrun(stack, "doubt", "discard", chunk, "--reason", "out of date", "--force")
        assert (code, "out of date" in out) == (0, True)
        code, _, err = await everyrun(stack, "watch", submission_id)
        assert code == 3, err
        assert (await job.fetch_report(http, stack.endpoints, submission_id))["by_status"] == {"REFUSED": 3}
        assert (await everyrun(stack, "doubt", "show", "sub_nope.c1"))[0] == 4
    finally:
        (await http.put(faults, json={"faults": "fail=0.3"})).raise_for_status()


async def test_a_dropped_schema_is_rebuilt_row_by_row(tmp_path: Path) -> None:
    options = Options(tmp_path / "stack", run_seconds="0:0.3", faults="duplicate=0.2,fail=0.1", env=SHORT)

    async def rows(endpoints: dict[str, str]) -> dict[str, list[str]]:
        connection = await asyncpg.connect(endpoints["postgres_dsn"])
        try:
            return {
                table: [r[0] for r in await connection.fetch(f"select t::text from everyrun.{table} t order by 1")]
                for table in ("submissions", "batches", "results", "other_runs", "unmatched_runs", "deliveries")
            }
        finally:
            await connection.close()

    async with Stack(options) as stack:
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {stack.endpoints['api_token']}"}) as http:
            submission = await job.submit(http, stack.endpoints, 400)
            await job.wait_until_agreed(http, stack.endpoints, submission["submission_id"], within=60)
        before, keys = await rows(stack.endpoints), dict(stack.endpoints)
        assert len(before["results"]) == 400
        connection = await asyncpg.connect(stack.endpoints["postgres_dsn"])
        await connection.execute("drop schema everyrun cascade")
        await connection.close()
    async with Stack(options) as stack:
        assert stack.endpoints == keys

        async def same() -> bool:
            return await rows(stack.endpoints) == before

        await eventually(same, "the tables are as before", 60)
        sent = (await httpx.AsyncClient().get(f"{keys['emulator_url']}/_emulator/stats")).json()["requests"]["run"]
        assert sent == 1
