"""Accept a retry: choose settled inputs of a submission, and store a new try of each in the queue.

The decision which inputs are chosen is made once, in one transaction, and is then in the queue and in the log. So the
same request under the same key chooses nothing a second time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import asyncpg
import msgspec
from msgspec import Meta, Struct

from everyrun.errors import Conflict, Invalid, NotFound, Unavailable
from everyrun.failpoints import hit
from everyrun.log.events import RetryFilter
from everyrun.store.sql import beside

_sql = beside(__file__, "retry.sql")
_encode = msgspec.json.Encoder().encode

#: The statuses of inputs that can be retried. MISSING: Extend no longer has the run of an input that is not settled.
RETRYABLE = ("FAILED", "REJECTED", "CANCELLED", "REFUSED", "MISSING")
#: Maximum number of ids of a filter that the queue and the log keep.
_MAX_KEPT_IDS = 100
#: The number of a retry has four hexadecimal digits in the version of a row.
_MAX_RETRIES = 9_999
#: Timeout, in seconds, of the statements that choose and store inputs. A retry may have a million of them.
_TIMEOUT = 600.0


class NotChosen(Struct, frozen=True):
    """An id that the filter names, and that is not sent again; with the input's status, or NOT_FOUND."""

    id: str
    status: str


class Chosen(Struct, frozen=True, kw_only=True):
    """The inputs that a retry sends again, or would send."""

    submission_id: str
    inputs: Annotated[int, Meta(description="Number of inputs that are sent again.")]
    by_status: Annotated[dict[str, int], Meta(description="Number of these inputs by their status so far.")]
    by_reason: Annotated[dict[str, int], Meta(description="Number of these inputs by failure_reason.")]
    credits: Annotated[float, Meta(description="Credits that Extend counted for the current runs of these inputs.")]
    needs_files: Annotated[int, Meta(description="Number of these inputs that need a new file to be sent.")]
    needs_files_ids: Annotated[list[str], Meta(description="The first hundred of them.")]
    not_chosen: Annotated[int, Meta(description="Number of ids in the filter that are not sent again.")]
    not_chosen_ids: Annotated[list[NotChosen], Meta(description="The first hundred of them.")]


class AcceptedRetry(Chosen, frozen=True, kw_only=True):
    """A retry that the queue has stored."""

    retry: Annotated[int, Meta(description="Number of the retry in its submission, from 1.")]


class RetryRefusedError(Conflict):
    """Nothing is sent again. The response has the numbers of the inputs that were found."""

    chosen: Chosen

    def details(self) -> dict[str, Any]:
        """Return what was found."""
        found: dict[str, Any] = msgspec.to_builtins(self.chosen)
        return found


class NothingToRetryError(RetryRefusedError):
    """No input of the submission meets the filter."""

    code = "NOTHING_TO_RETRY"

    def __init__(self, chosen: Chosen) -> None:
        super().__init__("no settled input without a result meets the filter, so there is nothing to send again")
        self.chosen = chosen


class FilesNeededError(RetryRefusedError):
    """Inputs cannot be sent again, because their presigned links or passwords were removed."""

    code = "FILES_NEEDED"

    def __init__(self, chosen: Chosen) -> None:
        ids = ", ".join(chosen.needs_files_ids[:5]) + (", …" if chosen.needs_files > 5 else "")
        super().__init__(
            f"{chosen.needs_files} of the inputs need a new file, because their links or passwords were removed: "
            f"{ids}. Give new files (files, or --manifest), or choose other inputs"
        )
        self.chosen = chosen


class NotOursError(Conflict):
    """The submission is a registered batch, which another program sent."""

    code = "NOT_OURS"


class RequestConflictError(Conflict):
    """The Idempotency-Key was used before, for another retry."""

    code = "IDEMPOTENCY_CONFLICT"


class QueueReplacedError(Unavailable):
    """The database was replaced after the queue was caught up with the log."""


async def preview(
    pool: asyncpg.Pool, submission_id: str, chosen_by: RetryFilter, files: Mapping[str, bytes] | None = None
) -> Chosen:
    """Return what a retry with this filter would send again. Changes nothing. Raises NotFound and NotOursError."""
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        try:
            # Without the lock: choosing many inputs takes seconds, and a preview must not delay changes.
            await _own(connection, "find_submission", submission_id)
            return await _choose(connection, submission_id, chosen_by, files or {})
        finally:
            await transaction.rollback()


async def accept_retry(
    pool: asyncpg.Pool,
    submission_id: str,
    chosen_by: RetryFilter,
    *,
    by: str | None,
    reason: str,
    key: str | None = None,
    files: Mapping[str, bytes] | None = None,
    incarnation: str | None = None,
) -> AcceptedRetry:
    """Store a new try of each input that meets the filter. When this returns, the queue holds them.

    ``files`` holds new files, as JSON text, by external id. ``by`` is None if Everyrun itself retries. A repeated
    request with the same ``key`` and filter gets the answer to the first one. If ``incarnation`` is given, the retry is
    accepted only while the database is still in that incarnation.

    Raises NotFound, NotOursError, NothingToRetryError, FilesNeededError, RequestConflictError and QueueReplacedError;
    then nothing was stored.
    """
    kept = bytes(_encode(msgspec.structs.replace(chosen_by, ids=chosen_by.ids[:_MAX_KEPT_IDS]))).decode()
    async with pool.acquire() as connection, connection.transaction():
        submission = await _own(connection, "lock_submission", submission_id)
        if incarnation not in (None, submission["incarnation"]):
            raise QueueReplacedError("the database was replaced; send the request again")
        if (
            key is not None
            and (same := await connection.fetchrow(_sql["same_request"], submission_id, key)) is not None
        ):
            return _repeated(submission_id, same, kept)
        chosen = await _choose(connection, submission_id, chosen_by, files or {})
        if not chosen.inputs:
            raise NothingToRetryError(chosen)
        if chosen.needs_files:
            raise FilesNeededError(chosen)
        retry = await connection.fetchval(_sql["next_retry"], submission_id)
        if retry > _MAX_RETRIES:
            raise Conflict(f"a submission can be retried {_MAX_RETRIES} times; submit the inputs again")
        values = (submission_id, retry, chosen.inputs, kept, by, reason, key)
        await connection.execute(_sql["insert_retry"], *values)
        await connection.execute(_sql["insert_tries"], submission_id, retry, timeout=_TIMEOUT)
        await connection.execute(_sql["check_secrets_again"], submission_id)
        hit("retry.before_commit")
    hit("retry.after_commit")
    return AcceptedRetry(**msgspec.structs.asdict(chosen), retry=retry)


async def _own(connection: Any, statement: str, submission_id: str) -> Any:
    """Return the row of a submission. Raises NotFound, and NotOursError for a registered batch."""
    submission = await connection.fetchrow(_sql[statement], submission_id)
    if submission is None:
        raise NotFound(f"there is no submission {submission_id}")
    if submission["registered_batch"] is not None:
        raise NotOursError("another program sent this batch, so Everyrun cannot send its inputs again; submit them")
    return submission


def _repeated(submission_id: str, same: Any, kept: str) -> AcceptedRetry:
    if msgspec.json.decode(same["chosen"], type=RetryFilter) != msgspec.json.decode(kept, type=RetryFilter):
        raise RequestConflictError("this Idempotency-Key was used for a retry with another filter; use a new key")
    none: dict[str, int] = {}
    return AcceptedRetry(
        submission_id=submission_id,
        inputs=same["inputs"],
        by_status=none,
        by_reason=none,
        credits=0.0,
        needs_files=0,
        needs_files_ids=[],
        not_chosen=0,
        not_chosen_ids=[],
        retry=same["retry"],
    )


async def _choose(connection: Any, submission_id: str, chosen_by: RetryFilter, files: Mapping[str, bytes]) -> Chosen:
    """Fill the table ``chosen_inputs``, and count what is in it."""
    wrong = sorted(set(chosen_by.statuses) - set(RETRYABLE))
    if wrong:
        raise Invalid(f"inputs with the status {wrong[0]} cannot be retried; possible: {', '.join(RETRYABLE)}")
    await connection.execute(_sql["create_chosen"])
    await connection.execute(
        _sql["choose"],
        submission_id,
        chosen_by.statuses or list(RETRYABLE),
        chosen_by.reasons,
        chosen_by.ids,
        list(chosen_by.where),
        list(chosen_by.where.values()),
        list(files),
        [text.decode() for text in files.values()],
        chosen_by.limit,
        timeout=_TIMEOUT,
    )
    counts = await connection.fetch(_sql["chosen_counts"])
    needed = await connection.fetch(_sql["without_files"])
    left_out = await connection.fetch(_sql["ids_not_chosen"], submission_id, list(dict.fromkeys(chosen_by.ids)))
    by_status: dict[str, int] = {}
    by_reason: dict[str, int] = {}
    for row in counts:
        by_status[row["status"]] = by_status.get(row["status"], 0) + row["inputs"]
        if row["failure_reason"] is not None:
            by_reason[row["failure_reason"]] = by_reason.get(row["failure_reason"], 0) + row["inputs"]
    return Chosen(
        submission_id=submission_id,
        inputs=sum(row["inputs"] for row in counts),
        by_status=by_status,
        by_reason=by_reason,
        credits=sum(row["credits"] for row in counts),
        needs_files=needed[0]["inputs"] if needed else 0,
        needs_files_ids=[row["external_id"] for row in needed],
        not_chosen=left_out[0]["inputs"] if left_out else 0,
        not_chosen_ids=[NotChosen(row["id"], row["status"]) for row in left_out],
    )
