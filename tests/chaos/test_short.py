"""The short form of ``make chaos``: one stack with two processors, three jobs, everything killed once or more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from chaos.stage import Stage, staged
from chaos.strikes import all_ready, strike
from chaos.witness import Witness

from chaos import jobs
from everyrun.cli import job

WITHIN = 400.0

#: Where a crash would hurt most: something has been done, and nobody has been told.
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
    async with staged(folder, 1, processors=2, run_seconds="0.2:4", EVERYRUN_CHUNK_MAX_INPUTS="150") as stage:
        yield stage


async def nothing(_submission_id: str) -> None:
    pass


async def the_job_ends_well(
    stage: Stage, inputs: int, faults: str, meanwhile: Callable[[str], Awaitable[None]] = nothing
) -> None:
    await all_ready(stage.stack)
    await stage.faults(faults)
    witness = await Witness.now(stage.endpoints["kafka_bootstrap"])
    deadline = time.monotonic() + WITHIN
    submission_id = await jobs.hand_in(stage.http, stage.endpoints, inputs)
    await meanwhile(submission_id)
    await jobs.settled(stage.http, stage.endpoints, submission_id, deadline)
    judged = await jobs.judged(stage.http, stage.endpoints, submission_id, witness, deadline)
    assert judged.problems == [], stage.tail()
    assert judged.comparison.double_batches == 0


@pytest.mark.timeout(500)
async def test_a_job_survives_a_kill_at_every_point_where_it_hurts(stage: Stage) -> None:
    stage.arm(*POINTS)
    before = stage.deaths()
    await the_job_ends_well(stage, 900, "drop=0.1,duplicate=0.1")
    assert [point for point in POINTS if not stage.has_struck(point)] == []
    assert stage.deaths() >= before + len(POINTS)


@pytest.mark.timeout(500)
async def test_a_job_survives_the_death_of_what_it_stands_on(stage: Stage) -> None:
    async def kill_all(_submission_id: str) -> None:
        for part in ("kafka", "postgres", "query", "emulator"):
            await strike(stage.stack, part, "kill")
            await asyncio.sleep(0.5)
        await all_ready(stage.stack)

    await the_job_ends_well(stage, 1500, "drop=0.02,duplicate=0.1", kill_all)


@pytest.mark.chaos
@pytest.mark.timeout(500)
async def test_two_processors_one_killed_or_terminated_again_and_again(stage: Stage) -> None:
    async def strikes(submission_id: str) -> None:
        for number, how in enumerate(("kill", "term", "kill")):
            async with asyncio.timeout(WITHIN):
                while (await job.report(stage.http, stage.endpoints, submission_id))["settled"] < 2000 * number + 200:
                    await asyncio.sleep(0.1)
            await strike(stage.stack, f"processor-{number % 2}", how)

    await the_job_ends_well(stage, 8000, "drop=0.01,duplicate=0.1", strikes)
