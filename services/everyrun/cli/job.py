"""Submit generated inputs to a running stack, and compare their results with the emulator's record."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import asyncpg
import httpx

from everyrun.cli.emulator_check import Comparison, compare
from everyrun.errors import EveryrunError
from everyrun.store.pool import POSTGRES_AWAY

#: Seconds to wait for an answer from a service that is restarting.
_RESTART_WITHIN = 60.0


class JobError(EveryrunError):
    """The inputs cannot be submitted, or their results cannot be compared. The text says why."""


def invoice_lines(count: int) -> str:
    """Return ``count`` generated invoices as NDJSON rows, numbered from 1."""
    invoices = (
        {
            "id": f"invoice-{n:06d}",
            "file": {
                "url": f"https://files.example.com/invoices/{n:06d}.pdf?signature=presigned",
                "name": f"{n:06d}.pdf",
            },
            "metadata": {"customer": f"c-{n % 97}", "row": n},
        }
        for n in range(1, count + 1)
    )
    return "".join(json.dumps(invoice) + "\n" for invoice in invoices)


async def submit(http: httpx.AsyncClient, endpoints: dict[str, str], count: int) -> dict[str, Any]:
    """Submit ``count`` invoices, and return the service's answer. Raises JobError if it refuses them."""
    answer = await http.post(
        f"{endpoints['submission_url']}/v1/submissions",
        params={"workflow_id": endpoints["workflow_id"]},
        content=invoice_lines(count),
        headers={"content-type": "application/x-ndjson"},
    )
    if answer.status_code != 202:
        raise JobError(f"the submission was refused with status {answer.status_code}: {answer.text}")
    body: dict[str, Any] = answer.json()
    return body


async def _get(http: httpx.AsyncClient, url: str) -> httpx.Response:
    """Return the answer to a GET. Retry while the service restarts; raise JobError if it takes too long."""
    deadline = time.monotonic() + _RESTART_WITHIN
    while time.monotonic() < deadline:
        try:
            answer = await http.get(url)
            if answer.status_code == 200:
                return answer
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.25)
    raise JobError(f"no answer with status 200 from {url} within {_RESTART_WITHIN:.0f} s")


async def fetch_report(http: httpx.AsyncClient, endpoints: dict[str, str], submission_id: str) -> dict[str, Any]:
    """Return the report of a submission. Raises JobError."""
    answer = await _get(http, f"{endpoints['query_url']}/v1/submissions/{submission_id}/report")
    body: dict[str, Any] = answer.json()
    return body


async def fetch_truth(http: httpx.AsyncClient, endpoints: dict[str, str], skip: int = 0) -> list[dict[str, Any]]:
    """Return the emulator's records of all runs, except the first ``skip`` runs. Raises JobError."""
    answer = await _get(http, f"{endpoints['emulator_url']}/_emulator/truth?skip={skip}")
    return [json.loads(line) for line in answer.text.splitlines()]


async def wait_until_agreed(
    http: httpx.AsyncClient, endpoints: dict[str, str], submission_id: str, within: float, skip: int = 0
) -> tuple[dict[str, Any], Comparison]:
    """Compare the results with the emulator's record until they agree, for at most ``within`` seconds.

    A single comparison is not enough, because a duplicate run of a settled input may still be in progress. The first
    ``skip`` runs of the emulator belong to other submissions and are ignored. Returns the last report and comparison.
    Raises JobError.
    """
    deadline = time.monotonic() + within
    while True:
        truth = [line for line in await fetch_truth(http, endpoints, skip) if belongs_to(line, submission_id)]
        comparison = await _compare(endpoints, submission_id, truth)
        report = await fetch_report(http, endpoints, submission_id)
        if (comparison.agrees and report["balanced"] and report["open"] == 0) or time.monotonic() > deadline:
            return report, comparison
        await asyncio.sleep(1)


async def _compare(endpoints: dict[str, str], submission_id: str, truth: list[dict[str, Any]]) -> Comparison:
    while True:
        try:
            rows, duplicates = await _fetch_results(endpoints["postgres_dsn"], submission_id)
        except POSTGRES_AWAY:
            await asyncio.sleep(0.5)
            continue
        return compare(truth, {row["input_id"]: (row["run_id"], row["status"]) for row in rows}, duplicates)


async def _fetch_results(dsn: str, submission_id: str) -> tuple[list[asyncpg.Record], int]:
    """Return the results of a submission, and the number of its duplicate runs."""
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        rows = await connection.fetch(
            "select input_id, run_id, status from everyrun.results where submission_id = $1", submission_id
        )
        duplicates = await connection.fetchval(
            "select count(*) from everyrun.other_runs where starts_with(input_id, $1 || ':')", submission_id
        )
        return rows, duplicates
    finally:
        await connection.close()


def belongs_to(line: dict[str, Any], submission_id: str) -> bool:
    """Return True if a line of the emulator's record is about an input of the submission."""
    key = line["metadata"].get("everyrun:input") or {}
    return str(key.get("input", "")).startswith(submission_id + ":")
