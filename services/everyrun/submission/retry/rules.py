"""Apply the rules of submissions: retry failed inputs automatically, and pause a submission that fails too often.

A failed input is retried when all inputs of its chunk have settled, so that one chunk gives one chunk of new tries. An
input that was refused, cancelled or discarded is never retried automatically: a repetition would end the same way, or
would contradict a person.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

from everyrun.log.events import RetryFilter, SubmissionRules
from everyrun.log.producer import Log
from everyrun.store.sql import beside
from everyrun.submission.decisions import pauses
from everyrun.submission.retry.accept import RetryRefusedError, accept_retry
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "rules.sql")


async def insert_rules(connection: Any, submission_id: str, rules: SubmissionRules) -> None:
    """Store the rules of a submission. Must be called in the transaction that inserts the submission."""
    values = (rules.retries, rules.retry_reasons, rules.stop_after_failures)
    await connection.execute(_sql["insert_rules"], submission_id, *values)


async def retry_by_rules(pool: asyncpg.Pool, wake_announcer: asyncio.Event) -> None:
    """Retry the failed inputs of settled chunks, in submissions whose rules say so. Raises asyncpg's errors.

    If the process dies between the retry and the mark on the chunks, the inputs are looked at again. They wait for
    their new try by then, so none of them is retried twice.
    """
    last = ""
    while rows := await pool.fetch(_sql["due"], last):
        for row in rows:
            submission_id, chunks = row["submission_id"], row["chunks"]
            failed = await pool.fetch(_sql["failed_of"], chunks, row["retry_reasons"], row["retries"])
            ids = [one["external_id"] for one in failed]
            if ids:
                await _retry(pool, submission_id, ids, row["retries"])
                wake_announcer.set()
            await pool.execute(_sql["mark_looked_at"], chunks)
        last = rows[-1]["submission_id"]


async def _retry(pool: asyncpg.Pool, submission_id: str, ids: list[str], retries: int) -> None:
    chosen_by = RetryFilter(statuses=["FAILED"], ids=ids)
    reason = f"automatic: the submission allows {retries} new tries of an input that fails"
    try:
        done = await accept_retry(pool, submission_id, chosen_by, by=None, reason=reason)
        _log.info("retried automatically", submission=submission_id, retry=done.retry, inputs=done.inputs)
    except RetryRefusedError as error:
        # The links of the inputs were removed, or their new tries wait already.
        _log.warning("cannot retry automatically", submission=submission_id, inputs=len(ids), reason=str(error))


async def stop_by_rules(pool: asyncpg.Pool, log: Log) -> None:
    """Pause submissions in which more inputs failed than their rules allow. A submission is paused once for this.

    Raises aiokafka.errors.KafkaError and asyncpg's errors.
    """
    for row in await pool.fetch(_sql["failing"]):
        submission_id = row["submission_id"]
        async with pool.acquire() as connection, connection.transaction():
            reason = stopped(row["failed"], row["stop_after_failures"], submission_id)
            await pauses.pause(connection, log, pauses.PauseTarget("submission", submission_id), reason, None)
            await connection.execute(_sql["mark_stopped"], submission_id)


def stopped(failed: int, allowed: int, submission_id: str) -> str:
    """Return the reason of the pause of a submission that fails too often. Pure."""
    return (
        f"{failed} inputs failed, more than the {allowed} that --stop-after-failures allows. See why: everyrun results "
        f"{submission_id} --status FAILED --status REFUSED"
    )
