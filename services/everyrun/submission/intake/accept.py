"""Taking a submission in: every row checked and in the queue, in one transaction, or none of them."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec

from everyrun.errors import Conflict, Invalid, Unavailable
from everyrun.failpoints import hit
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.submission.intake.chunks import Cutter, chunk_id
from everyrun.submission.intake.parse import Piece, Row
from everyrun.submission.intake.refill import refill
from everyrun.submission.intake.rows import BadRow, GoodRow, check_row, id_twice, shown_file
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "../queue.sql")
_SHOWN = 100
#: The rows are on our disk when their COPY begins, so this is only an end to it, in seconds. While it runs, Postgres
#: keeps dead rows of all tables, and no rebuilt tables take the place of the live ones.
_COPY_WITHIN = 3600.0
#: To find ids that come twice Postgres sorts all of them: of millions that takes longer than other statements may.
_COMPARED_WITHIN = 3600.0
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


class Accepted(msgspec.Struct, frozen=True):
    """A submission that was taken in for good."""

    submission_id: str
    expected: int
    batches: int


class BadRowsError(Invalid):
    """Rows are wrong, so nothing was taken in: how many, and the first of them."""

    def __init__(self, count: int, rows: list[BadRow]) -> None:
        super().__init__(f"{count} bad rows")
        self.count = count
        self.rows = rows


class IdempotencyConflictError(Conflict):
    """The Idempotency-Key was used before, with other content."""


class QueueReplacedError(Unavailable):
    """The database was replaced while the upload came in: the log must first be read for its Idempotency-Key."""


class SubmittedBeforeError(Conflict):
    """The very same rows were submitted before to the same workflow; the text says when, and as what."""

    def __init__(self, known: asyncpg.Record) -> None:
        self.submission_id: str = known["submission_id"]
        self.created_at: datetime = known["created_at"]
        super().__init__(
            f"These very {known['expected']} rows were submitted before: {self.submission_id}, "
            f"{self.created_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        )


class _SeenError(Exception):
    def __init__(self, accepted: Accepted) -> None:
        self.accepted = accepted


def new_submission_id(now: float | None = None) -> str:
    """A new id: ``sub_`` and 26 characters, the first ten of them the time, so that ids sort by it."""
    number = int((time.time() if now is None else now) * 1000) << 80 | secrets.randbits(80)
    return "sub_" + "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))


async def take_in(
    pool: asyncpg.Pool,
    settings: Settings,
    rows: AsyncIterator[Piece],
    *,
    workflow_id: str,
    workflow_version: str | None,
    priority: int,
    idempotency_key: str | None,
    incarnation: str | None = None,
    once: bool = False,
) -> Accepted:
    """Check and keep every row; the submission with its chunks is in the queue when this returns.

    A repeated upload under the same key returns the first one's answer, and fills in what the submission lost to a
    restored backup. With an ``incarnation`` of the database it is taken in there alone. With ``once`` the same rows
    under another key raise SubmittedBeforeError.

    Raises BadRowsError, IdempotencyConflictError, QueueReplacedError and what reading ``rows`` raises; nothing is kept
    then. Memory does not grow with the upload.
    """
    intake = Intake(settings, new_submission_id())
    intake.add_to_digests(msgspec.json.encode([workflow_id, workflow_version, priority]))
    async with pool.acquire() as connection:
        try:
            async with connection.transaction():
                await intake.copy(connection, rows)
                if incarnation not in (None, await connection.fetchval(_sql["incarnation"])):
                    raise QueueReplacedError
                accepted = await intake.finish(
                    connection, workflow_id, workflow_version, priority, idempotency_key, once
                )
                hit("intake.before_commit")
            hit("intake.after_commit")
            return accepted
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name != "submissions_idempotency_key_key":
                raise
        except _SeenError as seen:
            return seen.accepted
        known: Any = await connection.fetchrow(_sql["by_idempotency_key"], idempotency_key)
        return _same(known, intake)


def _same(known: asyncpg.Record, intake: Intake) -> Accepted:
    if not same_content(known, intake.digest.digest(), intake.shown_digest.digest()):
        raise IdempotencyConflictError
    return Accepted(known["submission_id"], known["expected"], known["batches"])


def is_incomplete(known: Any) -> bool:
    """Return whether the queue lacks inputs or files of a submission, which only its upload can bring back. Pure."""
    return bool(known["lost_inputs"] or known["files_lost"])


def same_content(known: Any, full: bytes, shown: bytes) -> bool:
    """Return whether an upload with these hashes repeats the submission. Pure.

    Of a submission that was put back from the log only what the log shows is known; and of one that lacks inputs a
    link may have been signed anew.
    """
    if known["full_hash"] == full:
        return True
    return (known["full_hash"] is None or is_incomplete(known)) and bool(known["content_hash"] == shown)


class Intake:
    """An upload on its way into the queue: every row checked; the good ones copied while none is bad."""

    def __init__(self, settings: Settings, submission_id: str) -> None:
        self.settings = settings
        self.submission_id = submission_id
        self.digest = hashlib.sha256()
        #: Of what the log shows of the content, so that the hash may stand in an event.
        self.shown_digest = hashlib.sha256()
        self.cutter = Cutter(settings.chunk_max_inputs, settings.chunk_max_bytes)
        self.rows = 0
        self.bad: list[BadRow] = []
        self.bad_count = 0

    async def copy(self, connection: Any, rows: AsyncIterator[Piece]) -> None:
        """Check every row and copy the good ones, in one COPY that Postgres works on meanwhile."""
        await connection.copy_to_table(
            "inputs",
            schema_name="everyrun_queue",
            columns=["submission_id", "position", "external_id", "file", "metadata"],
            source=self._text(rows),
            timeout=_COPY_WITHIN,
        )

    async def _text(self, rows: AsyncIterator[Piece]) -> AsyncIterator[bytes]:
        """The good rows as COPY's text."""
        async for piece in rows:
            # Beside bad rows the good ones are copied too: Postgres then finds the ids that come twice among them.
            if lines := [line for given in piece if (line := self._line(given)) is not None]:
                yield b"".join(lines)

    def _line(self, given: Row) -> bytes | None:
        row = self._check(given)
        if row is None:
            return None
        # Printable ids and JSON text hold no tab and no line break; only backslashes need care.
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
            if len(self.bad) < _SHOWN:
                self.bad.append(row)
            return None
        external_id, shown = row.external_id.encode(), shown_file(row.file)
        line = b"%s\n%s\n%s\n" % (external_id, row.file, row.metadata)
        self.digest.update(line)
        self.shown_digest.update(line if shown is row.file else b"%s\n%s\n%s\n" % (external_id, shown, row.metadata))
        self.cutter.add(row.size)
        return row

    def add_to_digests(self, content: bytes) -> None:
        """Add to the content what is not a row."""
        self.digest.update(content)
        self.shown_digest.update(content)

    async def finish(
        self,
        connection: Any,
        workflow_id: str,
        workflow_version: str | None,
        priority: int,
        key: str | None,
        once: bool,
    ) -> Accepted:
        """Refuse, or write the submission and its chunks, or fill in what an earlier upload's submission lost."""
        await self.refuse_bad(connection)
        if key is not None and await connection.fetchval(_sql["lock_by_idempotency_key"], key) is not None:
            known = await connection.fetchrow(_sql["by_idempotency_key"], key)
            accepted = _same(known, self)
            if not is_incomplete(known):
                # Raised, so that what was copied is taken back.
                raise _SeenError(accepted)
            digests = (self.digest.digest(), self.shown_digest.digest())
            await refill(connection, self.settings, known, self.submission_id, *digests)
            _log.warning("an upload was repeated after the queue had lost inputs", submission=accepted.submission_id)
            return accepted
        if once:
            await connection.execute(_sql["lock_content"], self.digest.digest())
            digests = (self.digest.digest(), self.shown_digest.digest())
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
            self.digest.digest(),
            self.shown_digest.digest(),
            created,
        )
        await connection.execute(_sql["insert_submission"], self.submission_id, *parameters)
        ids = [chunk_id(self.submission_id, number) for number in range(1, len(chunks) + 1)]
        firsts, lasts = [first for first, _ in chunks], [last for _, last in chunks]
        await connection.execute(_sql["insert_chunks"], self.submission_id, ids, firsts, lasts)
        return Accepted(self.submission_id, self.rows, len(chunks))

    async def refuse_bad(self, connection: Any) -> None:
        """Raise BadRowsError where a row is bad, an id is there twice, or there are no rows."""
        if self.rows:
            await self._refuse_ids_twice(connection)
        if self.bad_count:
            raise BadRowsError(self.bad_count, self.bad)
        if not self.rows:
            raise BadRowsError(0, [])

    async def _refuse_ids_twice(self, connection: Any) -> None:
        twice = 0
        for record in await connection.fetch(_sql["ids_twice"], self.submission_id, timeout=_COMPARED_WITHIN):
            self.bad.append(id_twice(record["position"], record["external_id"], record["first"]))
            twice = record["twice"]
        if twice:
            self.bad_count += twice
            self.bad = sorted(self.bad, key=lambda bad: bad.row)[:_SHOWN]
