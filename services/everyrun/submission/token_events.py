"""Tell the log of API tokens that were made or revoked: produce, then mark.

``everyrun token`` needs the database alone, so what it did is found here. A revocation takes effect in the database at
once; the event keeps it in force when the database is restored from an older backup. A creation is told for the record:
the event has no hash, so nobody can be let in by what is in the log.
"""

from __future__ import annotations

from typing import Any

import asyncpg

from everyrun.log.cloudevents import Record, record, timestamp
from everyrun.log.events import TokenCreated, TokenRevoked
from everyrun.log.producer import Log
from everyrun.store.sql import beside
from everyrun.submission.dispatch.event_records import SOURCE

_sql = beside(__file__, "queue.sql")


async def announce_tokens(pool: asyncpg.Pool, log: Log) -> None:
    """Publish what the log does not have yet of tokens.

    Raises aiokafka.errors.KafkaError and asyncpg's errors; what was published before stays published.
    """
    while rows := await pool.fetch(_sql["unannounced_tokens"]):
        for row in rows:
            await log.append(records(row))
            await pool.execute(_sql["mark_token_announced"], row["token_id"], row["revoked_at"] is not None)


def records(row: Any) -> list[Record]:
    """Return the events of a token that the log does not have; the same however often it is asked. Pure."""
    token_id, found = row["token_id"], []
    if row["created_announced_at"] is None:
        created = timestamp(row["created_at"])
        expires = timestamp(row["expires_at"]) if row["expires_at"] else None
        event = TokenCreated(token_id, row["name"], list(row["scopes"]), created, expires, row["created_by"])
        found.append(_record(token_id, "token-created", event, created))
    if row["revoked_at"] is not None and row["revoked_announced_at"] is None:
        revoked = timestamp(row["revoked_at"])
        by, reason = row["revoked_by"] or "", row["revoked_reason"] or ""
        found.append(
            _record(token_id, "token-revoked", TokenRevoked(token_id, row["name"], revoked, by, reason), revoked)
        )
    return found


def _record(token_id: str, kind: str, event: TokenCreated | TokenRevoked, time: str) -> Record:
    return record("batches", event, key=token_id, id=f"{token_id}/{kind}", source=SOURCE, time=time)
