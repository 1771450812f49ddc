"""Announce submissions, registered batches and API tokens in the log: publish an event, then mark the row.

Inputs are sent to Extend only after their submission was announced.

The command ``everyrun token`` uses only the database, so this service looks there for tokens that were created or
revoked, and announces them. A revocation takes effect in the database at once. Its event keeps the token revoked if the
database is restored from an older backup. The event of a created token does not contain the hash of the token, so
nobody can authenticate with what the log shows.
"""

from __future__ import annotations

import asyncio

import asyncpg

from everyrun.failpoints import hit
from everyrun.log.cloudevents import Record, record, timestamp
from everyrun.log.events import SubmissionAccepted, SubmissionRules, TokenCreated, TokenRevoked
from everyrun.log.producer import Log
from everyrun.store.sql import Row, beside
from everyrun.submission.dispatch.dispatcher import UNAVAILABLE
from everyrun.submission.dispatch.event_records import SOURCE
from everyrun.submission.dispatch.transitions import read_inputs
from everyrun.submission.intake.batch_registration import registration_record
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "queue.sql")


class Announcer:
    """Announce submissions and registered batches. ``dispatch_wake`` is set after each announcement."""

    def __init__(self, pool: asyncpg.Pool, log: Log, dispatch_wake: asyncio.Event) -> None:
        self._pool = pool
        self._log = log
        self._dispatch_wake = dispatch_wake
        #: Setting this makes the service announce at once. Set it after a submission was accepted.
        self.wake = asyncio.Event()

    async def announce(self) -> None:
        """Announce every submission that is not announced yet.

        If Kafka does not accept the event of one submission, the other submissions are not delayed.

        Raises asyncpg's errors.
        """
        failed: set[str] = set()
        while rows := await self._pool.fetch(_sql["unannounced"], sorted(failed)):
            for row in rows:
                try:
                    await self._announce(row)
                except Exception as error:
                    failed.add(row["submission_id"])
                    why, expected = f"{type(error).__name__}: {error}", isinstance(error, UNAVAILABLE)
                    _log.warning(
                        "will announce the submission later",
                        submission=row["submission_id"],
                        error=why,
                        exc_info=not expected,
                    )

    async def _announce(self, row: asyncpg.Record) -> None:
        submission_id = row["submission_id"]
        if row["registered_batch"] is None:
            announcement = _submission_record(row)
        else:
            inputs = await read_inputs(self._pool, submission_id, 1, row["expected"])
            announcement = registration_record(row, inputs)
        hit("announcer.before_produce")
        await self._log.append([announcement])
        hit("announcer.after_produce")
        await self._pool.execute(_sql["mark_announced"], submission_id)
        hit("announcer.after_mark")
        self._dispatch_wake.set()


def _submission_record(row: asyncpg.Record) -> Record:
    created = timestamp(row["created_at"])
    rules = None
    if row["retries"] is not None:
        rules = SubmissionRules(row["retries"], list(row["retry_reasons"]), row["stop_after_failures"])
    event = SubmissionAccepted(
        submission_id=row["submission_id"],
        workflow_id=row["workflow_id"],
        workflow_version=row["workflow_version"],
        priority=row["priority"],
        expected=row["expected"],
        batches=row["batches"],
        idempotency_key=row["idempotency_key"],
        content_hash=row["content_hash"].hex(),
        created_at=created,
        rules=rules,
        max_open_inputs=row["max_open_inputs"],
        synced_source=row["synced_source"],
    )
    key = row["submission_id"]
    return record("batches", event, key=key, id=f"{key}/submission-accepted", source=SOURCE, time=created)


async def announce_tokens(pool: asyncpg.Pool, log: Log) -> None:
    """Publish the creations and revocations of tokens that are not in the log yet.

    Raises aiokafka.errors.KafkaError and asyncpg's errors. Events that were published before the error stay published.
    """
    while rows := await pool.fetch(_sql["unannounced_tokens"]):
        for row in rows:
            await log.append(token_records(row))
            await pool.execute(_sql["mark_token_announced"], row["token_id"], row["revoked_at"] is not None)


def token_records(row: Row) -> list[Record]:
    """Return the events of a token that are not in the log yet. The same row always gives the same events. Pure."""
    token_id, found = row["token_id"], []
    if row["created_announced_at"] is None:
        created = timestamp(row["created_at"])
        expires = timestamp(row["expires_at"]) if row["expires_at"] else None
        event = TokenCreated(token_id, row["name"], list(row["scopes"]), created, expires, row["created_by"])
        found.append(_token_record(token_id, "token-created", event, created))
    if row["revoked_at"] is not None and row["revoked_announced_at"] is None:
        revoked = timestamp(row["revoked_at"])
        by, reason = row["revoked_by"] or "", row["revoked_reason"] or ""
        revocation = TokenRevoked(token_id, row["name"], revoked, by, reason)
        found.append(_token_record(token_id, "token-revoked", revocation, revoked))
    return found


def _token_record(token_id: str, kind: str, event: TokenCreated | TokenRevoked, time: str) -> Record:
    return record("batches", event, key=token_id, id=f"{token_id}/{kind}", source=SOURCE, time=time)
