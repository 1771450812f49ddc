"""The main job on a whole stack, through the command line and the APIs, as people use them."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import pytest
from aiokafka import AIOKafkaConsumer

from everyrun.cli import job
from everyrun.cli.demo import SHORT
from everyrun.embedded.stack import Options, Stack
from tests.conftest import eventually

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    options = Options(tmp_path_factory.mktemp("job"), run_seconds="0.1:0.5", faults="fail=0.3", seed=3, env=SHORT)
    async with Stack(options) as stack:
        yield stack


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {stack.endpoints['api_token']}"}
    async with httpx.AsyncClient(headers=headers, timeout=60) as client:
        yield client


async def everyrun(stack: Stack, *arguments: str | Path) -> tuple[int, str, str]:
    """The command line, as a process: exit code, standard output, standard error."""
    env = {**os.environ, "EVERYRUN_DATA_DIR": str(stack.data_dir), "COLUMNS": "80"}
    command = [sys.executable, "-c", "from everyrun.cli.app import main; main()", *map(str, arguments)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, env=env, check=False)
    return done.returncode, done.stdout, done.stderr


async def settled(http: httpx.AsyncClient, stack: Stack, submission_id: str) -> dict:
    said, comparison = await job.agree(http, stack.endpoints, submission_id, within=60)
    assert said["open"] == 0, said
    assert said["balanced"], said
    assert comparison.agrees, comparison.differences
    return said


async def test_failures_are_submitted_again(stack: Stack, http: httpx.AsyncClient, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    lines = [f"doc-{n},https://files.example.com/{n}.pdf,c{n}" for n in range(60)]
    manifest.write_text("id,url,customer\n" + "\n".join(lines) + "\n")
    code, out, err = await everyrun(stack, "submit", manifest, "--metadata-columns", "customer", "--wait")
    assert code == 3, err
    submission_id = out.split()[0]
    said = await settled(http, stack, submission_id)
    failed = said["by_status"]["FAILED"]
    code, out, err = await everyrun(stack, "results", submission_id, "--format", "csv", "--status", "FAILED")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, len(rows)) == (0, failed)
    assert all(row["failure_reason"] and json.loads(row["metadata"]) for row in rows)
    again = tmp_path / "again.csv"
    again.write_text(out)
    code, out, err = await everyrun(stack, "submit", again)
    assert code == 0, err
    second = out.split()[0]
    said = await settled(http, stack, second)
    assert said["expected"] == failed
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


async def test_the_same_ids_twice_stay_apart(stack: Stack, http: httpx.AsyncClient) -> None:
    both = [(await job.hand_in(http, stack.endpoints, 30))["submission_id"] for _ in range(2)]
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
    said = await settled(http, stack, out.split()[0])
    assert said["expected"] == 3
    before = (await http.get(f"{stack.endpoints['emulator_url']}/_emulator/stats")).json()["requests"]["write"]
    code, out, err = await everyrun(stack, "submit", EXAMPLES / "documents")
    assert "3 of 3 files had been uploaded before" in err
    after = (await http.get(f"{stack.endpoints['emulator_url']}/_emulator/stats")).json()["requests"]["write"]
    assert after == before


@pytest.mark.parametrize("name", ["invoices.csv", "invoices.ndjson"])
async def test_the_examples_are_right(stack: Stack, name: str) -> None:
    code, _, err = await everyrun(stack, "submit", EXAMPLES / name, "--dry-run")
    assert code == 0, err


async def test_the_command_line_says_what_is_wrong(stack: Stack, tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("id,url\na,ftp://x\nb,https://files.example.com/b.pdf\n")
    for more in ((), ("--dry-run",)):
        code, _, err = await everyrun(stack, "submit", bad, *more)
        assert code == 1
        assert "file.url" in err
        assert "nothing was handed in" in err
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
    submission_id = (await job.hand_in(http, stack.endpoints, 40))["submission_id"]
    first = (await http.get(f"{url}/v1/submissions/{submission_id}/report")).json()
    assert (first["expected"], sum(first["by_status"].values())) == (40, 40)
    said = await settled(http, stack, submission_id)
    rows = await every_result(http, stack, submission_id=submission_id)
    assert len({row["input_id"] for row in rows}) == 40
    failed = await every_result(http, stack, submission_id=submission_id, status="FAILED")
    assert len(failed) == said["by_status"].get("FAILED", 0)
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


async def test_whoever_reads_a_result_on_the_topic_finds_it_in_the_table(stack: Stack, http: httpx.AsyncClient) -> None:
    consumer = AIOKafkaConsumer(
        "everyrun.results", bootstrap_servers=stack.endpoints["kafka_bootstrap"], auto_offset_reset="latest"
    )
    await consumer.start()
    connection = await asyncpg.connect(stack.endpoints["postgres_dsn"])
    try:
        await consumer.seek_to_end()
        submission_id = (await job.hand_in(http, stack.endpoints, 50))["submission_id"]
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


async def test_the_example_consumer_tells_of_every_result(stack: Stack, http: httpx.AsyncClient) -> None:
    submission_id = (await job.hand_in(http, stack.endpoints, 20))["submission_id"]
    command = [sys.executable, str(EXAMPLES / "consumer.py"), stack.endpoints["kafka_bootstrap"], submission_id]
    # While the job runs, and again when all is over: the report is then read before the results.
    for _ in range(2):
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        told = [line.split(": ")[0] for line in done.stdout.splitlines()]
        assert set(told[:-1]) == {f"{submission_id}:invoice-{n:06d}" for n in range(1, 21)}
        assert told[-1] == submission_id


async def test_a_dropped_schema_is_made_again_row_for_row(tmp_path: Path) -> None:
    options = Options(tmp_path / "stack", run_seconds="0:0.3", faults="duplicate=0.2,fail=0.1", env=SHORT)

    async def rows(endpoints: dict[str, str]) -> dict[str, list[str]]:
        connection = await asyncpg.connect(endpoints["postgres_dsn"])
        try:
            return {
                table: [r[0] for r in await connection.fetch(f"select t::text from everyrun.{table} t order by 1")]
                for table in ("submissions", "batches", "results", "duplicate_runs", "unmatched_runs", "deliveries")
            }
        finally:
            await connection.close()

    async with Stack(options) as stack:
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {stack.endpoints['api_token']}"}) as http:
            submission = await job.hand_in(http, stack.endpoints, 400)
            await job.agree(http, stack.endpoints, submission["submission_id"], within=60)
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
