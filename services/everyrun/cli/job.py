"""A job on a running stack: handing inputs in, asking how it goes, comparing with the truth."""

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

#: A service that is being started again is waited for this long, in seconds.
_AWAY = 60.0


class JobError(EveryrunError):
    """The job cannot go on; the text says why."""


def rows(count: int) -> str:
    """So many invoices as NDJSON."""
    given = (
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
    return "".join(json.dumps(row) + "\n" for row in given)


async def hand_in(http: httpx.AsyncClient, endpoints: dict[str, str], count: int) -> dict[str, Any]:
    """Hand so many inputs in; the service's answer. Raises JobError where it is refused."""
    answer = await http.post(
        f"{endpoints['submission_url']}/v1/submissions",
        params={"workflow_id": endpoints["workflow_id"]},
        content=rows(count),
        headers={"content-type": "application/x-ndjson"},
    )
    if answer.status_code != 202:
        raise JobError(f"the submission was refused: {answer.text}")
    body: dict[str, Any] = answer.json()
    return body


async def _answered(http: httpx.AsyncClient, url: str) -> httpx.Response:
    """GET, with patience: the service may be being started again. Raises JobError."""
    deadline = time.monotonic() + _AWAY
    while time.monotonic() < deadline:
        try:
            answer = await http.get(url)
            if answer.status_code == 200:
                return answer
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.25)
    raise JobError(f"{url} does not answer")


async def report(http: httpx.AsyncClient, endpoints: dict[str, str], submission_id: str) -> dict[str, Any]:
    """The report on a submission. Raises JobError."""
    answer = await _answered(http, f"{endpoints['query_url']}/v1/submissions/{submission_id}/report")
    body: dict[str, Any] = answer.json()
    return body


async def truth(http: httpx.AsyncClient, endpoints: dict[str, str], skip: int = 0) -> list[dict[str, Any]]:
    """What really happened to every run but the first ``skip``, by the emulator. Raises JobError."""
    answer = await _answered(http, f"{endpoints['emulator_url']}/_emulator/truth?skip={skip}")
    return [json.loads(line) for line in answer.text.splitlines()]


async def agree(
    http: httpx.AsyncClient, endpoints: dict[str, str], submission_id: str, within: float, skip: int = 0
) -> tuple[dict[str, Any], Comparison]:
    """Compare until it agrees and balances: a second run of an input may still be on its way.

    The emulator's first ``skip`` runs are known to be of others.
    """
    deadline = time.monotonic() + within
    while True:
        lines = [line for line in await truth(http, endpoints, skip) if is_of(line, submission_id)]
        comparison = await _compared(endpoints, submission_id, lines)
        said = await report(http, endpoints, submission_id)
        if (comparison.agrees and said["balanced"] and said["open"] == 0) or time.monotonic() > deadline:
            return said, comparison
        await asyncio.sleep(1)


async def _compared(endpoints: dict[str, str], submission_id: str, lines: list[dict[str, Any]]) -> Comparison:
    while True:
        try:
            found, duplicates = await _rows(endpoints["postgres_dsn"], submission_id)
        except POSTGRES_AWAY:
            await asyncio.sleep(0.5)
            continue
        return compare(lines, {row["input_id"]: (row["run_id"], row["status"]) for row in found}, duplicates)


async def _rows(dsn: str, submission_id: str) -> tuple[list[asyncpg.Record], int]:
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        found = await connection.fetch(
            "select input_id, run_id, status from everyrun.results where submission_id = $1", submission_id
        )
        duplicates = await connection.fetchval(
            "select count(*) from everyrun.duplicate_runs where starts_with(input_id, $1 || ':')", submission_id
        )
        return found, duplicates
    finally:
        await connection.close()


def is_of(line: dict[str, Any], submission_id: str) -> bool:
    """Whether a line of the truth is of an input of the submission."""
    key = line["metadata"].get("everyrun:input") or {}
    return str(key.get("input", "")).startswith(submission_id + ":")
