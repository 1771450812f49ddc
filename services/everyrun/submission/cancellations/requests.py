"""Accept cancellations: show what a cancellation would do, and store it together with its event."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import asyncpg

from everyrun.errors import Invalid, NotFound, Unavailable
from everyrun.failpoints import hit
from everyrun.log import events
from everyrun.log.cloudevents import record, timestamp
from everyrun.log.producer import Log
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.submission.cancellations.outcomes import Counts
from everyrun.submission.cancellations.scope import logged_ranges, multirange, ranges_of
from everyrun.submission.cancellations.storage import store
from everyrun.submission.chunks import Range
from everyrun.submission.dispatch.event_records import SOURCE
from everyrun.submission.ids import new_cancellation_id
from everyrun.submission.recovery.queue_recovery import QueueRecovery

_sql = beside(__file__, "cancellations.sql")
#: How many unknown ids an error names.
_NAMED = 20


class UnknownInputsError(Invalid):
    """The submission has no inputs with some of the given ids. The text names the first of them."""

    code = "UNKNOWN_INPUTS"


class NotAnnouncedError(Unavailable):
    """The submission's own event must be in the log before its cancellation."""


class Scope(NamedTuple):
    """The inputs that a cancellation is about: a submission, what a person named, and the positions."""

    submission_id: str
    named: Literal["submission", "batch", "inputs"]
    batch_id: str | None
    ranges: list[Range]

    @property
    def inputs(self) -> int:
        """The number of positions."""
        return sum(last - first + 1 for first, last in self.ranges)


class Requested(NamedTuple):
    """The answer to a request: the cancellation's id, or None if there was nothing to cancel; and the counts before."""

    cancellation_id: str | None
    scope: Scope
    counts: Counts


async def count(connection: Any, submission_id: str, positions: Any) -> Counts:
    """Count the inputs of a submission at these positions, by what a cancellation does with them."""
    found: dict[str, dict[str, int]] = {"queued": {}, "in_transit": {}, "rows": {}}
    for row in await connection.fetch(_sql["counts"], submission_id, positions):
        by_name = found[row["kind"]]
        by_name[row["name"]] = by_name.get(row["name"], 0) + row["inputs"]
    return Counts(**found)


class Cancellations:
    """Show what cancellations would do, and accept them."""

    def __init__(
        self, settings: Settings, pool: asyncpg.Pool, log: Log, recovery: QueueRecovery, wake_job: asyncio.Event
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._log = log
        self._recovery = recovery
        self._wake_job = wake_job

    async def of_submission(self, submission_id: str, ids: Sequence[str] | None = None) -> Scope:
        """Return the scope of a submission, or of those of its inputs that have these ids.

        Raises NotFound if there is no such submission, and UnknownInputsError.
        """
        last = await self._pool.fetchval(_sql["last_position"], submission_id)
        if last is None:
            raise NotFound(f"there is no submission {submission_id}")
        if ids is None:
            return Scope(submission_id, "submission", None, [(1, last)])
        rows = await self._pool.fetch(_sql["positions_of_ids"], submission_id, sorted(set(ids)))
        if unknown := sorted(set(ids) - {row["external_id"] for row in rows}):
            more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
            raise UnknownInputsError(
                f"{submission_id} has no inputs with these ids: {', '.join(unknown[:_NAMED])}{more}. Nothing was "
                "cancelled. Remove them from the list, or check the submission"
            )
        return Scope(submission_id, "inputs", None, ranges_of(row["position"] for row in rows))

    async def of_batch(self, batch_id: str) -> Scope:
        """Return the scope of a batch that Everyrun sent or that was registered. Raises NotFound."""
        row = await self._pool.fetchrow(_sql["batch_positions"], batch_id)
        if row is None:
            raise NotFound(f"Everyrun knows no batch {batch_id}. If another program sent it: everyrun register")
        return Scope(row["submission_id"], "batch", batch_id, [(row["first_position"], row["last_position"])])

    async def preview(self, scope: Scope) -> Counts:
        """Count what a cancellation would affect now. Raises aiokafka.errors.KafkaError and ForeignLogError."""
        await self._recovery.ensure_caught_up()
        return await count(self._pool, scope.submission_id, multirange(scope.ranges))

    async def request(self, scope: Scope, by: str, why: str) -> Requested:
        """Cancel the inputs of the scope. When this returns, no further call to Extend contains one of them.

        If there is nothing to cancel, store nothing. Raises the errors of ``preview``. After an error, either nothing
        was cancelled, or the log has the event and the queue follows it soon.
        """
        counts = await self.preview(scope)
        if not counts.cancellable:
            return Requested(None, scope, counts)
        if not await self._pool.fetchval(_sql["is_announced"], scope.submission_id):
            raise NotAnnouncedError(f"{scope.submission_id} was accepted a moment ago; send the request again")
        now = timestamp(datetime.now(UTC))
        event = events.CancellationRequested(
            cancellation_id=new_cancellation_id(),
            submission_id=scope.submission_id,
            scope=scope.named,
            batch_id=scope.batch_id,
            positions=logged_ranges(scope.ranges),
            requested_at=now,
            by=by,
            reason=why,
        )
        identifier = f"{event.cancellation_id}/cancellation-requested"
        said = record("batches", event, key=scope.submission_id, id=identifier, source=SOURCE, time=now)
        async with self._pool.acquire() as connection, connection.transaction():
            hit("cancel.before_produce")
            await self._log.append([said])
            await store(connection, event, self._settings)
            hit("cancel.before_commit")
        hit("cancel.after_commit")
        self._wake_job.set()
        return Requested(event.cancellation_id, scope, counts)
