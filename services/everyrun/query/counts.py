"""Count the inputs of a submission: from stored counters, or, if a filter needs it, by counting rows."""

from __future__ import annotations

from collections import Counter
from typing import Any

import asyncpg
from fastapi import FastAPI
from msgspec.structs import replace

from everyrun.errors import NotFound
from everyrun.http import scope
from everyrun.openapi import answers
from everyrun.projection.rules.merge import SETTLED
from everyrun.query import estimate as estimates
from everyrun.query.answers import ResultCounts
from everyrun.query.filter_parameters import Wanted, statement
from everyrun.query.filters import Filter, conditions_of
from everyrun.query.gate import Gate
from everyrun.query.paging import Connection, check_text
from everyrun.query.report import Counts, counts_of, polling_of
from everyrun.query.results import check_statuses
from everyrun.settings import Settings
from everyrun.store.sql import beside

_sql = beside(__file__, "query.sql")


def count_routes(app: FastAPI, settings: Settings, pool: asyncpg.Pool, reports: Gate) -> None:
    """Add the route ``/v1/submissions/{submission_id}/counts``. It shares the gate of the reports."""

    @app.get("/v1/submissions/{submission_id}/counts", dependencies=[scope("read")])
    @answers(ResultCounts, {404: "NOT_FOUND: there is no such submission."})
    async def result_counts(submission_id: str, wanted: Wanted) -> dict[str, Any]:
        """Count the inputs of a submission that fit the filters, by status and by failure reason.

        Without filters, or with `status` alone, the numbers by status are stored counters, and only the rows with a
        failure reason are counted. Any other filter is applied to every row of the submission.
        """
        check_text(submission_id=submission_id)
        async with reports.turn(), pool.acquire() as c, c.transaction(isolation="repeatable_read", readonly=True):
            submission = await submission_of(c, submission_id)
            await check_statuses(c, wanted.status)
            counts = await counts_in(c, settings, submission)
            if wanted.narrows:
                conditions = conditions_of(wanted)
                text = statement(_sql["result_counts"], conditions=conditions.text)
                rows = await c.fetch(text, *conditions.values)
            else:
                rows = await c.fetch(_sql["failure_counts"], submission_id)
        return counted(submission["expected"], wanted, counts, [tuple(row) for row in rows])


def counted(expected: int, wanted: Filter, counts: Counts, rows: list[tuple[str, str | None, int]]) -> dict[str, Any]:
    """Return the answer of the route.

    ``counts`` are the stored counters. ``rows`` are numbers of rows by status and failure reason: of the rows that fit
    the filter if it narrows, else of the rows of the submission that have a failure reason.
    """
    by_status: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for status, reason, inputs in rows:
        by_status[status] += inputs
        if reason is not None and (not wanted.status or status in wanted.status):
            reasons[reason] += inputs
    if not wanted.narrows:
        kept = counts.by_status.items()
        by_status = Counter({status: n for status, n in kept if n and (not wanted.status or status in wanted.status)})
    return {
        "submission_id": wanted.submission_id,
        "total": by_status.total(),
        "by_status": dict(sorted(by_status.items())),
        "by_failure_reason": dict(sorted(reasons.items())),
        "not_searched": expected - sum(counts.rows.values()) if wanted.narrows else 0,
    }


async def submission_of(connection: Connection, submission_id: str) -> asyncpg.Record:
    """Return a submission. Raises NotFound if there is none with this id."""
    row = await connection.fetchrow(_sql["submission"], submission_id)
    if row is None:
        raise NotFound(f"there is no submission {submission_id}")
    return row


async def counts_in(connection: Connection, settings: Settings, submission: asyncpg.Record) -> Counts:
    """Return the numbers of a submission's inputs from the stored counters and the queue. No row is counted."""
    submission_id = submission["submission_id"]
    rows = {row["status"]: row["inputs"] for row in await connection.fetch(_sql["counts"], submission_id)}
    unsent = await connection.fetch(_sql["unsent_groups"], submission_id, settings.overdue_after)
    untold = {row["status"]: row["inputs"] for row in await connection.fetch(_sql["untold"], submission_id)}
    row = await connection.fetchrow(_sql["polling"], submission_id, settings.poll_first_after, settings.poll_for)
    polling = None if row is None else polling_of(dict(row))
    ambiguous = await connection.fetchval(_sql["ambiguous"], submission_id)
    will_retry = await connection.fetchval(_sql["will_retry"], submission_id)
    counts = counts_of(
        submission_id, submission["expected"], rows, map(dict, unsent), polling, ambiguous, untold, will_retry
    )
    return replace(counts, estimate=await _estimate(connection, settings, submission, counts))


async def _estimate(
    connection: Connection, settings: Settings, submission: asyncpg.Record, counts: Counts
) -> estimates.Estimate:
    submission_id, expected = submission["submission_id"], submission["expected"]
    facts: Any = await connection.fetchrow(_sql["estimate_facts"], submission_id)
    samples = [estimates.Sample(*row) for row in await connection.fetch(_sql["settled_samples"], submission_id)]
    if facts["first_sent"] is not None:
        samples.append(estimates.Sample(facts["first_sent"], 0))
    settled = sum(number for status, number in counts.by_status.items() if status in SETTLED)
    for_person = sum(one.inputs for one in counts.waiting if one.waits_for in estimates.NEEDS_PERSON)
    return estimates.estimate(
        facts["now"],
        samples,
        settled=settled,
        remaining=expected - settled - for_person - counts.needs_person.get("needs_review", 0),
        ahead=facts["ahead"],
        plan_per_minute=settings.file_rate(),
        stalls=estimates.stalls_of(counts.waiting, counts.needs_person, facts["extend_pause"]),
        credits=estimates.credits_of(facts["spent"], facts["inputs"], expected),
    )
