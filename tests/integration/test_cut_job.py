"""One bad input, a version that does not exist, a worker killed before it told the log: on real services."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import asyncpg
import httpx
import pytest
from pydantic import SecretStr

from everyrun.settings import Settings
from tests.conftest import eventually
from tests.contract.conftest import KEY, WORKFLOW, EmulatorProcess
from tests.integration.conftest import read_topic
from tests.integration.services import ServiceProcess
from tests.integration.test_restored_queue import TOKEN, all_services, report

pytestmark = pytest.mark.stack
BEARER = {"authorization": f"Bearer {TOKEN}"}


async def hand_in(
    submission: ServiceProcess, workflow: str, rows: list[dict[str, Any]], version: str | None = None
) -> str:
    """Hand the rows in; the submission's id."""
    async with httpx.AsyncClient(headers=BEARER, timeout=60) as http:
        answer = await http.post(
            f"{submission.url}/v1/submissions",
            params={"workflow_id": workflow} | ({"workflow_version": version} if version else {}),
            content=b"\n".join(json.dumps(row).encode() for row in rows),
            headers={"content-type": "application/x-ndjson"},
        )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["submission_id"])


def requests(emulator: EmulatorProcess) -> int:
    """The batch calls that the emulator had."""
    return int(httpx.get(emulator.url + "/_emulator/stats").json()["requests"]["run"])


@pytest.mark.timeout(280)
async def test_of_a_thousand_inputs_the_bad_one_is_refused_and_a_wrong_version_refuses_none(
    service: Any, emulator_with: Callable[..., EmulatorProcess], settings: Settings
) -> None:
    emulator = emulator_with("--run-seconds", "0.1:0.5")
    services = await all_services(service, emulator, EVERYRUN_CHUNK_MAX_INPUTS=1000, EVERYRUN_REQUESTS_PER_SECOND=50)
    settings.api_token = SecretStr(TOKEN)
    rows = [{"id": f"row-{n}", "file": {"text": f"page {n}"}} for n in range(1, 1001)]
    rows[499]["file"] = {"id": "file_nope"}
    submission = await hand_in(services["submission"], WORKFLOW, rows)

    async def settled() -> bool:
        said = await report(settings, submission)
        return bool(said.get("balanced")) and said["open"] == 0

    await eventually(settled, "every input is accounted for", 150)
    connection = await asyncpg.connect(settings.postgres_dsn.get_secret_value())
    found = await connection.fetch("select status, count(*) from everyrun.results group by 1")
    refused = await connection.fetchrow("select * from everyrun.results where status = 'REFUSED'")
    assert dict(found) == {"PROCESSED": 999, "REFUSED": 1}
    assert refused["external_id"] == "row-500"
    assert "there is no file file_nope" in refused["failure_message"]
    assert len(emulator.truth()) == 999, "each good input became one run"
    assert requests(emulator) - 1 <= 2 * math.log2(1000)

    before = requests(emulator)
    # Intake refuses a version that is not there; one that goes between that and the call pauses its submission alone.
    async with httpx.AsyncClient(base_url=services["submission"].url, headers=BEARER, timeout=60) as http:
        params = {"workflow_id": WORKFLOW, "workflow_version": "99"}
        refused = await http.post("/v1/submissions", params=params, json={"inputs": rows[:1]})
        assert (refused.status_code, refused.json()["code"]) == (422, "UNKNOWN_VERSION")
        assert refused.json()["did_you_mean"] == ["draft", "2", "1"]
        await http.post(f"/v1/workflows/{WORKFLOW}/pause", json={"reason": "a test", "by": "ann"})
        waits = await hand_in(services["submission"], WORKFLOW, rows[:3], "2")
        query = "update everyrun_queue.submissions set workflow_version = '99' where submission_id = $1"
        await connection.execute(query, waits)
        await http.post(f"/v1/workflows/{WORKFLOW}/resume", json={"reason": "a test", "by": "ann"})

    async def paused() -> str:
        query = "select reason from everyrun_queue.paused where kind = 'submission' and id = $1"
        return str(await connection.fetchval(query, waits) or "")

    await eventually(paused, "the submission is paused", 60)
    assert f"404 NOT_FOUND: version 99 of workflow {WORKFLOW} not found" in await paused()
    assert f"everyrun submission resume {waits}" in await paused()
    assert requests(emulator) == before + 1

    async def is_told() -> bool:
        return (await report(settings, waits)).get("by_status") == {"WAITING": 3}

    await eventually(is_told, "its inputs wait", 60)
    await hand_in(services["submission"], WORKFLOW, rows[:3])

    async def sent() -> bool:
        return requests(emulator) == before + 2

    await eventually(sent, "another submission to the same workflow is sent", 60)
    await connection.close()


@pytest.mark.chaos
@pytest.mark.timeout(200)
async def test_an_input_whose_worker_was_killed_before_it_told_the_log_is_sent_without_a_doubt(
    service: Any, emulator_with: Callable[..., EmulatorProcess], settings: Settings, database: str
) -> None:
    emulator = emulator_with("--run-seconds", "0.1:0.5")
    variables = {
        "EXTEND_API_KEY": KEY,
        "EVERYRUN_EXTEND_BASE_URL": emulator.url,
        "EVERYRUN_API_TOKEN": TOKEN,
        # The window alone is longer than the test may take.
        "EVERYRUN_DISPATCH_DEADLINE": 5,
        "EVERYRUN_CALL_TIMEOUT": 300,
        "EVERYRUN_DOUBT_WINDOW": 900,
    }
    first = await service("submission", **variables, EVERYRUN_FAILPOINTS="dispatcher.after_claim").ready()
    await hand_in(first, WORKFLOW, [{"file": {"text": "a page"}}])

    async def is_dead() -> bool:
        return first.process.poll() is not None

    await eventually(is_dead, "the worker is killed once it has claimed the chunk", 60)
    connection = await asyncpg.connect(database)
    chunk = await connection.fetchrow("select * from everyrun_queue.chunks")
    assert (chunk["state"], chunk["attempt"], requests(emulator)) == ("sending", 1, 0)
    await service("submission", **variables).ready()

    async def sent() -> bool:
        return await connection.fetchval("select state from everyrun_queue.chunks") == "submitted"

    await eventually(sent, "it is sent again at once", 90)
    chunk = await connection.fetchrow("select * from everyrun_queue.chunks")
    assert (chunk["attempt"], chunk["resends"], requests(emulator)) == (2, 0, 1)
    said = [event["type"] for event, _ in await read_topic(settings, "batches")]
    assert sorted(said) == ["batch-requested", "batch-submitted", "submission-accepted"]
    await connection.close()
