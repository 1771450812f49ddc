"""A job under fire: handed in with patience, waited for, judged by what really happened."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import asyncpg
import httpx
from aiokafka.errors import KafkaError

from chaos.witness import Witness, unheard, unpublished
from everyrun.cli import job
from everyrun.cli.emulator_check import Comparison
from everyrun.store.pool import POSTGRES_AWAY

_AWAY = (*POSTGRES_AWAY, KafkaError, httpx.TransportError)
_HANDED_IN_WITHIN = 60.0


class Judgement(NamedTuple):
    """What Everyrun says in the end, how it compares with the truth, and what is not as promised, in sentences."""

    report: dict[str, Any]
    comparison: Comparison
    problems: list[str]


async def hand_in(http: httpx.AsyncClient, endpoints: dict[str, str], count: int) -> str:
    """Hand inputs in as a careful caller does: with an Idempotency-Key, again until it is answered. Its id."""
    key = str(uuid.uuid4())
    deadline = time.monotonic() + _HANDED_IN_WITHIN
    while True:
        try:
            answer = await http.post(
                f"{endpoints['submission_url']}/v1/submissions",
                params={"workflow_id": endpoints["workflow_id"]},
                content=job.rows(count),
                headers={"content-type": "application/x-ndjson", "idempotency-key": key},
            )
            if answer.status_code < 300:
                return str(answer.json()["submission_id"])
            why = answer.text
        except httpx.TransportError as error:
            why = f"{type(error).__name__} {error}"
        if time.monotonic() > deadline:
            raise job.JobError(f"inputs could not be handed in: {why}")
        await asyncio.sleep(0.2)


async def settled(
    http: httpx.AsyncClient,
    endpoints: dict[str, str],
    submission_id: str,
    deadline: float,
    tell: Callable[[dict[str, Any]], None] = lambda _report: None,
) -> dict[str, Any]:
    """Wait until no input is open, or the deadline (monotonic); the last report. Raises JobError."""
    while True:
        report = await job.report(http, endpoints, submission_id)
        tell(report)
        if report["open"] == 0 or time.monotonic() > deadline:
            return report
        await asyncio.sleep(0.25)


async def judged(
    http: httpx.AsyncClient,
    endpoints: dict[str, str],
    submission_id: str,
    witness: Witness,
    deadline: float,
    skip: int = 0,
) -> Judgement:
    """Compare until everything agrees, or the deadline. Raises JobError.

    The emulator's first ``skip`` runs are known to be of others.
    """
    while True:
        report, comparison = await job.agree(http, endpoints, submission_id, max(deadline - time.monotonic(), 0), skip)
        problems = problems_of(report, comparison)
        problems += await _witnessed(http, endpoints, submission_id, witness, skip)
        if not problems or time.monotonic() > deadline:
            return Judgement(report, comparison, problems)
        await asyncio.sleep(1)


def problems_of(report: dict[str, Any], comparison: Comparison) -> list[str]:
    """What is not as promised."""
    problems = []
    if report["open"]:
        problems.append(f"{report['open']} inputs are open ({report['by_status']})")
    if not report["balanced"]:
        problems.append(f"not balanced: {report['imbalances']}")
    if not comparison.agrees:
        problems.append(f"differs from the truth: {comparison.differences[0]}")
    return problems


async def _witnessed(
    http: httpx.AsyncClient, endpoints: dict[str, str], submission_id: str, witness: Witness, skip: int
) -> list[str]:
    try:
        lines = [line for line in await job.truth(http, endpoints, skip) if job.is_of(line, submission_id)]
        connection = await asyncpg.connect(endpoints["postgres_dsn"], timeout=10)
        try:
            query = "select input_id, version from everyrun.results where submission_id = $1 and run_id is not null"
            rows = {row["input_id"]: row["version"] for row in await connection.fetch(query, submission_id)}
        finally:
            await connection.close()
        await witness.read()
    except _AWAY as error:
        return [f"could not be judged: {type(error).__name__} {error}"]
    problems = []
    if lost := unheard(lines, witness.heard):
        problems.append(f"{len(lost)} webhooks were answered with 2xx and are not in the log, as of {lost[0]}")
    if behind := unpublished(rows, witness.published):
        problems.append(f"{len(behind)} rows are not published as they are, as {behind[0]}")
    return problems
