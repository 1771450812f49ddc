"""A queue and its log are bound to one Extend; nothing of theirs is sent to another."""

from __future__ import annotations

import asyncpg
import httpx
import pytest

from everyrun.settings import Settings
from tests.conftest import eventually
from tests.contract.conftest import KEY, WORKFLOW
from tests.integration.services import ServiceProcess
from tests.integration.test_graceful import says
from tests.integration.test_reconciler import note, variables

pytestmark = pytest.mark.stack
REAL = "https://api.extend.ai"


async def a_waiting_chunk(connection: asyncpg.Connection) -> None:
    """Insert a submission of one input that is announced, so that it is sent as soon as possible."""
    await connection.execute(
        "insert into everyrun_queue.submissions (submission_id, workflow_id, priority, expected, batches, content_hash,"
        " created_at, announced_at) values ('sub_a', $1, 90, 1, 1, '', now(), now())",
        WORKFLOW,
    )
    await connection.execute(
        "insert into everyrun_queue.inputs values ('sub_a', 1, 'a', $1, '{}')",
        '{"url":"https://files.example.com/a.pdf"}',
    )
    await connection.execute(
        "insert into everyrun_queue.chunks (chunk, submission_id, first_position, last_position)"
        " values ('sub_a.c1', 'sub_a', 1, 1)"
    )


async def refuses(service: ServiceProcess, *texts: str) -> None:
    for text in texts:
        await says(service, "extend", text)


async def test_another_extend_is_refused_and_receives_nothing(service, emulator_with, settings: Settings) -> None:
    emulator = emulator_with("--run-seconds", "0")
    connection = await asyncpg.connect(settings.postgres_dsn.get_secret_value())
    await connection.execute("update everyrun_queue.installation set vendor = $1", REAL)
    await a_waiting_chunk(connection)
    await note(settings, "SUBMITTED", batch_id="batch_of_the_real_one")
    started = [service(name, **variables(emulator.url)) for name in ("submission", "reconciler")]
    for process in started:
        await refuses(process, f"bound to the Extend {REAL}", "names emulator")

    def requests() -> int:
        return sum(httpx.get(f"{emulator.url}/_emulator/stats").json()["requests"].values())

    async def state() -> str:
        return await connection.fetchval("select state from everyrun_queue.chunks")

    async with httpx.AsyncClient() as http:
        assert (await http.post(started[0].url + "/v1/submissions")).status_code == 503
    assert (await state(), requests()) == ("waiting", 0)
    # Once a person writes the new address to the database, the services start.
    await connection.execute("update everyrun_queue.installation set vendor = 'emulator'")
    for process in started:
        await process.ready()

    async def sent() -> bool:
        return await state() == "submitted" and requests() >= 2

    await eventually(sent, "the chunk is sent, the batch is polled", 60)
    await connection.close()


async def test_first_start_binds_and_the_emulators_port_may_change(service, emulator_with, settings) -> None:
    connection = await asyncpg.connect(settings.postgres_dsn.get_secret_value())
    for _ in range(2):
        emulator = emulator_with()
        submission = await service("submission", **variables(emulator.url)).ready()
        assert await connection.fetchval("select vendor from everyrun_queue.installation") == "emulator"
        submission.terminate()
    await refuses(service("submission", EXTEND_API_KEY=KEY), "bound to the Extend emulator", f"names {REAL}")
    await connection.close()
