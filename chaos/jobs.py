"""Submit a job with retries, wait for it, and judge it by what really happened."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import asyncpg
import httpx
from aiokafka.errors import KafkaError

from chaos.log_witness import LogWitness, missing_webhooks, unpublished_inputs
from everyrun.cli import job
from everyrun.cli.emulator_check import Comparison
from everyrun.store.pool import POSTGRES_AWAY

_UNAVAILABLE = (*POSTGRES_AWAY, KafkaError, httpx.TransportError)
_SUBMITTED_WITHIN = 60.0


class Judgement(NamedTuple):
    """The job's last report, its comparison with the truth, and the broken promises as sentences."""

    report: dict[str, Any]
    comparison: Comparison
    problems: list[str]


async def submit(http: httpx.AsyncClient, endpoints: dict[str, str], count: int) -> str:
    """Submit inputs under an Idempotency-Key, retry until it is answered, and return the submission id.

    Raises JobError after a minute.
    """
    answer = await _post(
        http,
        f"{endpoints['submission_url']}/v1/submissions",
        "the inputs could not be submitted",
        params={"workflow_id": endpoints["workflow_id"]},
        content=job.invoice_lines(count),
        headers={"content-type": "application/x-ndjson"},
    )
    return str(answer.json()["submission_id"])


async def retry(http: httpx.AsyncClient, endpoints: dict[str, str], submission_id: str) -> None:
    """Retry every failed input under an Idempotency-Key until it is answered. Raises JobError after a minute."""
    await _post(
        http,
        f"{endpoints['submission_url']}/v1/submissions/{submission_id}/retries",
        "the inputs could not be retried",
        json={"reason": "chaos", "filter": {"statuses": ["FAILED"]}},
        headers={},
    )


async def cancel(http: httpx.AsyncClient, endpoints: dict[str, str], submission_id: str) -> None:
    """Cancel the submission, until the request is answered. Raises JobError after a minute."""
    url = f"{endpoints['submission_url']}/v1/submissions/{submission_id}/cancellations"
    await _post(http, url, "the submission could not be cancelled", json={"reason": "chaos"}, headers={})


async def _post(
    http: httpx.AsyncClient, url: str, problem: str, headers: dict[str, str], **request: Any
) -> httpx.Response:
    """Send a POST under a new Idempotency-Key until it succeeds. Raises JobError with ``problem`` after a minute."""
    key = str(uuid.uuid4())
    deadline = time.monotonic() + _SUBMITTED_WITHIN
    while True:
        try:
            answer = await http.post(url, headers={**headers, "idempotency-key": key}, **request)
            if answer.status_code < 300:
                return answer
            why = answer.text
        except httpx.TransportError as error:
            why = f"{type(error).__name__} {error}"
        if time.monotonic() > deadline:
            raise job.JobError(f"{problem}: {why}")
        await asyncio.sleep(0.2)


async def settle(
    http: httpx.AsyncClient,
    endpoints: dict[str, str],
    submission_id: str,
    deadline: float,
    show: Callable[[dict[str, Any]], None] = lambda _report: None,
) -> dict[str, Any]:
    """Wait until no input is open or the deadline (monotonic) has passed. Return the last report. Raises JobError."""
    while True:
        report = await job.fetch_report(http, endpoints, submission_id)
        show(report)
        if report["open"] == 0 or time.monotonic() > deadline:
            return report
        await asyncio.sleep(0.25)


async def judge(
    http: httpx.AsyncClient,
    endpoints: dict[str, str],
    submission_id: str,
    witness: LogWitness,
    deadline: float,
    runs_before: int = 0,
) -> Judgement:
    """Compare until everything agrees or the deadline has passed. Raises JobError.

    The emulator's first ``runs_before`` runs belong to earlier jobs and are left out.
    """
    while True:
        report, comparison = await job.wait_until_agreed(
            http, endpoints, submission_id, max(deadline - time.monotonic(), 0), runs_before
        )
        problems = problems_of(report, comparison)
        problems += await _compare_with_log(http, endpoints, submission_id, witness, runs_before)
        if not problems or time.monotonic() > deadline:
            return Judgement(report, comparison, problems)
        await asyncio.sleep(1)


def problems_of(report: dict[str, Any], comparison: Comparison) -> list[str]:
    """Return which promises the report and the comparison break."""
    problems = []
    if report["open"]:
        problems.append(f"{report['open']} inputs are open ({report['by_status']})")
    if not report["balanced"]:
        problems.append(f"not balanced: {report['imbalances']}")
    if not comparison.agrees:
        problems.append(f"differs from the truth: {comparison.differences[0]}")
    return problems


async def _compare_with_log(
    http: httpx.AsyncClient, endpoints: dict[str, str], submission_id: str, witness: LogWitness, runs_before: int
) -> list[str]:
    try:
        lines = [
            line for line in await job.fetch_truth(http, endpoints, runs_before) if job.belongs_to(line, submission_id)
        ]
        connection = await asyncpg.connect(endpoints["postgres_dsn"], timeout=10)
        try:
            query = "select input_id, version from everyrun.results where submission_id = $1 and run_id is not null"
            rows = {row["input_id"]: row["version"] for row in await connection.fetch(query, submission_id)}
        finally:
            await connection.close()
        await witness.read()
    except _UNAVAILABLE as error:
        return [f"the job could not be judged: {type(error).__name__} {error}"]
    problems = []
    if lost := missing_webhooks(lines, witness.webhook_runs):
        problems.append(f"{len(lost)} webhooks were answered with 2xx and are not in the log, for example of {lost[0]}")
    if stale := unpublished_inputs(rows, witness.published):
        problems.append(f"{len(stale)} rows are not published in their last version, for example {stale[0]}")
    return problems
