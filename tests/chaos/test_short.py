"""The short form of ``make chaos``: one stack with two processors, three jobs, every part killed at least once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from chaos.log_witness import LogWitness
from chaos.stage import Stage, running_stage
from chaos.strikes import all_ready, strike

from chaos import jobs
from everyrun.cli import job

WITHIN = 400.0

#: Where a crash would hurt most: a step is done, but not yet recorded.
POINTS = (
    "intake.after_commit",
    "announcer.after_produce",
    "dispatcher.after_intent",
    "dispatcher.after_post",
    "dispatcher.after_produce",
    "adopt.after_produce",
    "bridge.before_produce",
    "bridge.after_produce",
    "apply.before_commit",
    "apply.after_commit",
    "processor.before_ack",
    "deliveries.before_offset",
    "polling.after_produce",
)


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("chaos")
    async with running_stage(folder, 1, processors=2, run_seconds="0.2:4", EVERYRUN_CHUNK_MAX_INPUTS="150") as stage:
        yield stage


async def do_nothing(_submission_id: str) -> None:
    pass


async def the_job_ends_well(
    stage: Stage, inputs: int, faults: str, meanwhile: Callable[[str], Awaitable[None]] = do_nothing
) -> None:
    await all_ready(stage.stack)
    await stage.faults(faults)
    witness = await LogWitness.from_now(stage.endpoints["kafka_bootstrap"])
    deadline = time.monotonic() + WITHIN
    submission_id = await jobs.submit(stage.http, stage.endpoints, inputs)
    await meanwhile(submission_id)
    await jobs.settle(stage.http, stage.endpoints, submission_id, deadline)
    judged = await jobs.judge(stage.http, stage.endpoints, submission_id, witness, deadline)
    assert judged.problems == [], stage.tail()
    assert judged.comparison.double_batches == 0


@pytest.mark.timeout(500)
async def test_a_job_survives_a_kill_at_every_critical_failpoint(stage: Stage) -> None:
    stage.arm(*POINTS)
    before = stage.restarts()
    await the_job_ends_well(stage, 900, "drop=0.1,duplicate=0.1")
    assert [point for point in POINTS if not stage.has_struck(point)] == []
    assert stage.restarts() >= before + len(POINTS)


@pytest.mark.timeout(500)
async def test_a_job_survives_kills_of_kafka_postgres_query_and_emulator(stage: Stage) -> None:
    async def kill_all(_submission_id: str) -> None:
        for part in ("kafka", "postgres", "query", "emulator"):
            await strike(stage.stack, part, "kill")
            await asyncio.sleep(0.5)
        await all_ready(stage.stack)

    await the_job_ends_well(stage, 1500, "drop=0.02,duplicate=0.1", kill_all)


@pytest.mark.chaos
@pytest.mark.timeout(500)
async def test_a_job_survives_repeated_kills_of_its_two_processors(stage: Stage) -> None:
    async def strikes(submission_id: str) -> None:
        for number, how in enumerate(("kill", "term", "kill")):
            async with asyncio.timeout(WITHIN):
                while (await job.fetch_report(stage.http, stage.endpoints, submission_id))[
                    "settled"
                ] < 2000 * number + 200:
                    await asyncio.sleep(0.1)
            await strike(stage.stack, f"processor-{number % 2}", how)

    await the_job_ends_well(stage, 8000, "drop=0.01,duplicate=0.1", strikes)
