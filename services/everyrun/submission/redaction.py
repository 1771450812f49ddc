"""Remove the presigned URLs and passwords (secrets) of a submission from the queue, some time after it has settled."""

from __future__ import annotations

from datetime import datetime, timedelta

import asyncpg
import msgspec

from everyrun.log.producer import Log
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.submission.decisions import pauses
from everyrun.submission.dispatch.dispatcher import UNAVAILABLE
from everyrun.submission.intake.rows import redact_file
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "queue.sql")
#: Maximum number of inputs whose secrets are removed in one transaction.
_SLICE = 1000
#: A submission that is not settled is checked again after a tenth of its age. These are the minimum and maximum waits.
_CHECK_MIN, _CHECK_MAX = timedelta(minutes=1), timedelta(hours=6)
_REMOVED = (
    "Its presigned links and passwords were removed {days:g} days after it was submitted "
    "(EVERYRUN_SECRETS_KEPT_UNSETTLED), so its unsent inputs cannot be sent. Submit them again"
)


def next_redaction(
    now: datetime, created_at: datetime, settled_at: datetime | None, kept: timedelta, kept_unsettled: timedelta
) -> datetime:
    """Return when to remove the secrets of a submission, or when to check the submission again. Pure.

    If the returned time is ``now`` or earlier, the secrets must be removed now. Otherwise the submission must be
    checked again at the returned time.

    The secrets of a settled submission are removed when ``kept`` has passed since it settled. Those of an unsettled
    submission are removed when ``kept_unsettled`` has passed since it was accepted. The older an unsettled submission
    is, the less often it is checked.
    """
    if settled_at is not None:
        return settled_at + kept
    wait = min(max((now - created_at) / 10, _CHECK_MIN), _CHECK_MAX)
    ends = created_at + kept_unsettled
    return ends if ends <= now else min(now + wait, ends)


async def redact_due(pool: asyncpg.Pool, log: Log, settings: Settings) -> None:
    """Remove the presigned URLs and passwords of every submission for which :func:`next_redaction` says so.

    Afterwards, the queue has the files in the same form as the log: without query strings and passwords. If the
    submission still has inputs that were not sent, it is paused, because they can no longer be sent. The pause shows
    this reason.

    The inputs of a submission are changed in groups, each in its own transaction. If this fails for one submission, it
    is retried later, and the other submissions are not delayed.

    Raises asyncpg's errors.
    """
    kept = timedelta(seconds=settings.secrets_kept)
    kept_unsettled = timedelta(seconds=settings.secrets_kept_unsettled)
    for row in await pool.fetch(_sql["to_redact"]):
        submission_id, now = row["submission_id"], row["now"]
        try:
            settled_at = await pool.fetchval(_sql["all_settled_at"], submission_id)
            due = next_redaction(now, row["created_at"], settled_at, kept, kept_unsettled)
            if due > now:
                await pool.execute(_sql["postpone_redaction"], submission_id, due)
                continue
            await _redact(pool, log, submission_id, row["last_position"], kept_unsettled)
        except Exception as error:
            why, expected = f"{type(error).__name__}: {error}", isinstance(error, UNAVAILABLE)
            _log.warning("will redact the submission later", submission=submission_id, error=why, exc_info=not expected)
            await pool.execute(_sql["postpone_redaction"], submission_id, now + _CHECK_MIN)


async def _redact(pool: asyncpg.Pool, log: Log, submission_id: str, last: int, kept_unsettled: timedelta) -> None:
    pause = await pool.fetchval(_sql["has_unsubmitted"], submission_id)
    for first in range(1, last + 1, _SLICE):
        rows = await pool.fetch(_sql["files"], submission_id, first, first + _SLICE - 1)
        redacted = {row["position"]: _redacted(row["file"]) for row in rows}
        changed = {
            row["position"]: redacted[row["position"]] for row in rows if redacted[row["position"]] != row["file"]
        }
        if not changed:
            continue
        if pause:
            async with pool.acquire() as connection, connection.transaction():
                why = _REMOVED.format(days=kept_unsettled / timedelta(days=1))
                target = pauses.PauseTarget("submission", submission_id)
                await pauses.pause(connection, log, target, why, None)
            pause = False
        # Mark the submission before any file changes. From then on, the claim function skips chunks whose files lack
        # their secrets.
        await pool.execute(_sql["begin_redaction"], submission_id)
        await pool.execute(_sql["redact_inputs"], submission_id, list(changed), list(changed.values()))
    await pool.execute(_sql["begin_redaction"], submission_id)
    await pool.execute(_sql["mark_redacted"], submission_id)


def _redacted(file: str) -> str:
    """Return the JSON of a file without its secrets. If it has none, return the same text."""
    given = msgspec.json.decode(file)
    redacted = redact_file(given)
    return file if redacted == given else msgspec.json.encode(redacted).decode()
