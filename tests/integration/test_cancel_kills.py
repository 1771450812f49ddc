"""The submission service is killed at each step of a cancellation: it still cancels everything, and nothing is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import asyncpg
import httpx
import pytest

from everyrun import failpoints
from everyrun.cli import job
from everyrun.settings import Settings
from tests.conftest import eventually
from tests.contract.conftest import KEY, WORKFLOW, EmulatorProcess
from tests.integration.conftest import read_topic
from tests.integration.services import ServiceProcess

pytestmark = pytest.mark.stack
TOKEN = "a-token-of-sixteen-or-more"
PER_CHUNK = 3
POINTS = [point for point in failpoints.POINTS if point.startswith("cancel.")]


class Killed:
    """A submission service that is started again whenever a failpoint killed it."""

    def __init__(self, service: Any, emulator: EmulatorProcess) -> None:
        self.variables = {
            "EXTEND_API_KEY": KEY,
            "EVERYRUN_EXTEND_BASE_URL": emulator.url,
            "EVERYRUN_API_TOKEN": TOKEN,
            "EVERYRUN_CHUNK_MAX_INPUTS": PER_CHUNK,
            "EVERYRUN_FAILPOINTS": ",".join(POINTS),
        }
        self.service, self.deaths = service, 0
        self.process: ServiceProcess

    async def start(self) -> None:
        self.process = await self.service("submission", **self.variables).ready()

    async def call(self, method: str, path: str, **more: Any) -> Any:
        """Send a request until it is answered, starting the service again if it died."""
        while True:
            try:
                async with httpx.AsyncClient(headers={"authorization": f"Bearer {TOKEN}"}, timeout=60) as http:
                    answer = await http.request(method, self.process.url + path, **more)
                    assert answer.status_code < 300, answer.text
                    return answer.json()
            except httpx.TransportError:
                assert self.process.process.wait(timeout=20) == -9, self.process.log.read_text()[-3000:]
                self.deaths += 1
                await self.start()

    async def submit(self, inputs: int) -> str:
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {TOKEN}"}, timeout=60) as http:
            where = {"submission_url": self.process.url, "workflow_id": WORKFLOW}
            return str((await job.submit(http, where, inputs))["submission_id"])

    async def chunks(self, submission_id: str) -> dict[str, int]:
        found: dict[str, int] = (await self.call("GET", f"/v1/submissions/{submission_id}"))["chunks"]
        return found


@pytest.mark.timeout(300)
async def test_a_kill_at_any_step_of_a_cancellation_loses_nothing(
    service: Any, emulator_with: Callable[..., EmulatorProcess], settings: Settings, database: str
) -> None:
    emulator = emulator_with("--run-seconds", "300")
    killed = Killed(service, emulator)
    await killed.start()
    sent = await killed.submit(2 * PER_CHUNK)

    async def submitted() -> bool:
        return await killed.chunks(sent) == {"submitted": 2}

    await eventually(submitted, "the chunks are sent", 60)
    await killed.call("POST", f"/v1/workflows/{WORKFLOW}/pause", json={"reason": "a test"})
    unsent = await killed.submit(2 * PER_CHUNK)
    for submission_id in (sent, unsent):
        await killed.call("POST", f"/v1/submissions/{submission_id}/cancellations", json={"reason": "a test"})

    async def cancelled() -> bool:
        found = await killed.call("GET", "/v1/cancellations")
        shown = [
            await killed.call("GET", f"/v1/cancellations/{one['cancellation_id']}") for one in found["cancellations"]
        ]
        done = {name: sum(one["outcomes"][name] for one in shown) for name in ("cancelled", "cancelled_unsent")}
        # A request that was not answered may have made a cancellation, and its repetition another one.
        return done["cancelled"] >= 2 * PER_CHUNK and done["cancelled_unsent"] == 2 * PER_CHUNK

    await eventually(cancelled, "everything is cancelled", 120)
    assert killed.deaths == len(POINTS)
    assert await killed.chunks(unsent) == {"cancelled": 2}
    await killed.call("POST", f"/v1/workflows/{WORKFLOW}/resume", json={"reason": "a test"})
    async with httpx.AsyncClient() as http:

        async def at_rest() -> bool:
            stats = (await http.get(f"{emulator.url}/_emulator/stats")).json()
            return (stats["runs"], stats["open_runs"]) == (2 * PER_CHUNK, 0)

        await eventually(at_rest, "every run at Extend is cancelled, and there is no other", 30)
    connection = await asyncpg.connect(database)
    states = await connection.fetch("select distinct state from everyrun_queue.chunks where submission_id = $1", unsent)
    await connection.close()
    assert [row["state"] for row in states] == ["cancelled"]
    kinds = [event["type"] for event, _ in await read_topic(settings, "batches")]
    assert kinds.count("batch-requested") == kinds.count("batch-submitted") == 2
    assert kinds.count("batch-cancelled") in (2, 3), "a chunk whose event was written before the kill has it twice"
