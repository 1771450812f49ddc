"""Accept a submission: check every row of an upload, and store all rows in one transaction, or none."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec

from everyrun.errors import Conflict, Invalid, Unavailable
from everyrun.failpoints import hit
from everyrun.log.events import SubmissionRules
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.submission.chunks import Cutter, chunk_id, chunk_size
from everyrun.submission.ids import new_submission_id
from everyrun.submission.intake.idempotency import Recent, key_of
from everyrun.submission.intake.parse import Row, RowGroup
from everyrun.submission.intake.refill import refill
from everyrun.submission.intake.rows import BadRow, GoodRow, check_row, duplicate_id, redacted_json
from everyrun.submission.retry.rules import insert_rules
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "intake.sql")
#: Maximum number of bad rows in an answer.
_MAX_BAD_ROWS = 100
#: Timeout of the COPY that stores the rows, in seconds. The rows are on disk before the COPY begins, so it should never
#: take that long. It needs a limit, because while it runs, Postgres cannot remove dead rows of any table, and rebuilt
#: tables cannot replace the live ones.
_COPY_TIMEOUT = 3600.0
#: Timeout of the search for duplicate ids, in seconds. Postgres sorts all ids, which for millions of rows takes longer
#: than other statements are allowed to take.
_DUPLICATES_TIMEOUT = 3600.0


class AcceptedSubmission(msgspec.Struct, frozen=True):
    """A submission that the queue has stored. ``expected`` counts its inputs, ``batches`` its chunks."""

    submission_id: str
    expected: int
    batches: int


class BadRowsError(Invalid):
    """Rows are bad or missing, so nothing was accepted. ``rows`` lists the first of the ``count`` bad rows."""

    def __init__(self, count: int, rows: list[BadRow]) -> None:
        super().__init__(f"{count} bad row{'' if count == 1 else 's'}")
        self.count = count
        self.rows = rows


class IdempotencyConflictError(Conflict):
    """The Idempotency-Key was used before, for other content."""


class QueueReplacedError(Unavailable):
    """The database was replaced during the upload.

    The new database may not know the upload's Idempotency-Key, so the log must first be searched for the key.
    """


class SubmittedBeforeError(Conflict):
    """The same rows were submitted to the same workflow before. The text names that submission and its time."""

    def __init__(self, known: asyncpg.Record) -> None:
        self.submission_id: str = known["submission_id"]
        self.created_at: datetime = known["created_at"]
        super().__init__(
            f"These {known['expected']} rows were submitted before: {self.submission_id}, "
            f"{self.created_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        )


class _AcceptedBeforeError(Exception):
    """The upload repeats a submission that lacks nothing. Raised to roll back the rows copied from the upload."""

    def __init__(self, accepted: AcceptedSubmission) -> None:
        self.accepted = accepted


async def accept_submission(
    pool: asyncpg.Pool,
    settings: Settings,
    rows: AsyncIterator[RowGroup],
    *,
    workflow_id: str,
    workflow_version: str | None,
    priority: int,
    idempotency_key: str | None,
    incarnation: str | None = None,
    once: bool = False,
    rules: SubmissionRules | None = None,
    also: Callable[[Any, str], Awaitable[None]] | None = None,
    max_open_inputs: int | None = None,
    recent: Recent | None = None,
) -> AcceptedSubmission:
    """Check and store every row. When this returns, the queue holds the submission and its chunks.

    For an upload that repeats an earlier one, with the same key and content, the answer to the earlier one is returned.
    If the queue lost inputs of that submission because it was restored from a backup, the repeated upload restores
    them. If ``incarnation`` is given, the submission is accepted only while the database is still in that incarnation.
    If ``once`` is true, rows that were submitted before under another key raise SubmittedBeforeError. ``rules`` say
    how Everyrun reacts if inputs fail. ``also`` is awaited in the transaction of a new submission, with the
    connection and the submission's id. At most ``max_open_inputs`` inputs of the submission are open at Extend at the
    same time. ``recent`` names another key of the same upload; of two such uploads at once, one waits for the other.

    Raises BadRowsError, IdempotencyConflictError, QueueReplacedError, SubmittedBeforeError, and the errors of reading
    ``rows``. In all these cases nothing is stored. Memory use does not grow with the size of the upload.
    """
    intake = Intake(settings, new_submission_id(), max_open_inputs)
    intake.add_to_digests(msgspec.json.encode([workflow_id, workflow_version, priority]))
    async with pool.acquire() as connection:
        try:
            async with connection.transaction():
                await intake.copy(connection, rows)
                if incarnation not in (None, await connection.fetchval(_sql["incarnation"])):
                    raise QueueReplacedError
                key = await key_of(connection, idempotency_key, recent)
                accepted = await intake.finish(connection, workflow_id, workflow_version, priority, key, once)
                if rules is not None:
                    await insert_rules(connection, accepted.submission_id, rules)
                if also is not None and accepted.submission_id == intake.submission_id:
                    await also(connection, accepted.submission_id)
                hit("intake.before_commit")
            hit("intake.after_commit")
            return accepted
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name != "submissions_idempotency_key_key":
                raise
        except _AcceptedBeforeError as before:
            return before.accepted
        known: Any = await connection.fetchrow(_sql["by_idempotency_key"], idempotency_key)
        return _same_submission(known, intake)


def _same_submission(known: asyncpg.Record, intake: Intake) -> AcceptedSubmission:
    if not same_content(known, intake.digest.digest(), intake.redacted_digest.digest()):
        raise IdempotencyConflictError
    return AcceptedSubmission(known["submission_id"], known["expected"], known["batches"])


def is_incomplete(known: Any) -> bool:
    """Return True if a submission lost inputs or files that only a repeated upload can restore. Pure."""
    return bool(known["lost_inputs"] or known["files_lost"])


def same_content(known: Any, full: bytes, redacted: bytes) -> bool:
    """Return True if an upload with these hashes repeats the submission ``known``. Pure.

    Usually the hash of the full content decides. The hash of the redacted content decides in two cases. First: the
    submission was restored from the log. It then has no full hash, because the log contains only redacted files.
    Second: the submission lacks inputs. Its full hash may then no longer match, because the caller may have had to sign
    the links again.
    """
    if known["full_hash"] == full:
        return True
    return (known["full_hash"] is None or is_incomplete(known)) and bool(known["content_hash"] == redacted)


class Intake:
    """An upload on its way into the queue. Good rows are copied even if others are bad, to find all duplicate ids."""

    def __init__(self, settings: Settings, submission_id: str, max_open_inputs: int | None = None) -> None:
        self.settings = settings
        self.max_open_inputs = max_open_inputs
        self.submission_id = submission_id
        self.digest = hashlib.sha256()
        #: The hash of the redacted content. The log may show this hash, because no secrets go into it.
        self.redacted_digest = hashlib.sha256()
        max_inputs = chunk_size(settings.chunk_max_inputs, settings.max_open_inputs, max_open_inputs or 0)
        self.cutter = Cutter(max_inputs, settings.chunk_max_bytes)
        self.rows = 0
        self.bad: list[BadRow] = []
        self.bad_count = 0

    async def copy(self, connection: Any, rows: AsyncIterator[RowGroup]) -> None:
        """Check every row, and copy the good rows into the queue with one COPY that runs while the rows are checked."""
        await connection.copy_to_table(
            "inputs",
            schema_name="everyrun_queue",
            columns=["submission_id", "position", "external_id", "file", "metadata"],
            source=self._copy_text(rows),
            timeout=_COPY_TIMEOUT,
        )

    async def _copy_text(self, rows: AsyncIterator[RowGroup]) -> AsyncIterator[bytes]:
        """Yield the good rows in the text format of COPY."""
        async for group in rows:
            # Good rows after a bad row are copied too: Postgres then finds duplicate ids among all of them.
            if lines := [line for given in group if (line := self._copy_line(given)) is not None]:
                yield b"".join(lines)

    def _copy_line(self, given: Row) -> bytes | None:
        row = self._check(given)
        if row is None:
            return None
        # An id is printable and JSON text escapes control characters, so neither contains a tab or a line break. Only
        # backslashes need escaping.
        line = b"%s\t%d\t%s\t%s\t%s\n" % (
            self.submission_id.encode(),
            row.position,
            row.external_id.encode(),
            row.file,
            row.metadata,
        )
        return line.replace(b"\\", b"\\\\") if b"\\" in line else line

    def _check(self, given: Row) -> GoodRow | None:
        self.rows += 1
        at, value = given
        row = check_row(self.rows, value, self.submission_id, self.settings.row_max_bytes, at)
        if isinstance(row, BadRow):
            self.bad_count += 1
            if len(self.bad) < _MAX_BAD_ROWS:
                self.bad.append(row)
            return None
        external_id, redacted = row.external_id.encode(), redacted_json(row.file)
        line = b"%s\n%s\n%s\n" % (external_id, row.file, row.metadata)
        self.digest.update(line)
        unchanged = redacted is row.file
        self.redacted_digest.update(line if unchanged else b"%s\n%s\n%s\n" % (external_id, redacted, row.metadata))
        self.cutter.add(row.size)
        return row

    def add_to_digests(self, content: bytes) -> None:
        """Add content that is not a row, such as the workflow's id, to both hashes."""
        self.digest.update(content)
        self.redacted_digest.update(content)

    async def finish(
        self,
        connection: Any,
        workflow_id: str,
        workflow_version: str | None,
        priority: int,
        key: str | None,
        once: bool,
    ) -> AcceptedSubmission:
        """Insert the submission and its chunks, or restore what a repeated submission has lost.

        Raises BadRowsError, IdempotencyConflictError and SubmittedBeforeError. Raises _AcceptedBeforeError if the
        repeated submission has lost nothing.
        """
        await self.refuse_bad(connection)
        digests = (self.digest.digest(), self.redacted_digest.digest())
        if key is not None and await connection.fetchval(_sql["lock_by_idempotency_key"], key) is not None:
            known = await connection.fetchrow(_sql["by_idempotency_key"], key)
            accepted = _same_submission(known, self)
            if not is_incomplete(known):
                raise _AcceptedBeforeError(accepted)
            await refill(connection, self.settings, known, self.submission_id, *digests)
            _log.warning("an upload was repeated after the queue had lost inputs", submission=accepted.submission_id)
            return accepted
        if once:
            await connection.execute(_sql["lock_content"], digests[0])
            if (before := await connection.fetchrow(_sql["submitted_before"], *digests)) is not None:
                raise SubmittedBeforeError(before)
        chunks = self.cutter.finish()
        created = datetime.now(UTC)
        parameters = (
            workflow_id,
            workflow_version,
            priority,
            self.rows,
            len(chunks),
            key or self.submission_id,
            *digests,
            created,
            self.max_open_inputs,
        )
        await connection.execute(_sql["insert_submission"], self.submission_id, *parameters)
        ids = [chunk_id(self.submission_id, number) for number in range(1, len(chunks) + 1)]
        firsts, lasts = [first for first, _ in chunks], [last for _, last in chunks]
        await connection.execute(_sql["insert_chunks"], self.submission_id, ids, firsts, lasts)
        return AcceptedSubmission(self.submission_id, self.rows, len(chunks))

    async def refuse_bad(self, connection: Any) -> None:
        """Raise BadRowsError if a row is bad, two rows have the same id, or there are no rows."""
        if self.rows:
            await self._find_duplicate_ids(connection)
        if self.bad_count:
            raise BadRowsError(self.bad_count, self.bad)
        if not self.rows:
            raise BadRowsError(0, [])

    async def _find_duplicate_ids(self, connection: Any) -> None:
        duplicates = 0
        for record in await connection.fetch(_sql["duplicate_ids"], self.submission_id, timeout=_DUPLICATES_TIMEOUT):
            self.bad.append(duplicate_id(record["position"], record["external_id"], record["first"]))
            duplicates = record["duplicates"]
        if duplicates:
            self.bad_count += duplicates
            self.bad = sorted(self.bad, key=lambda bad: bad.row)[:_MAX_BAD_ROWS]
