"""Add, change and remove receivers, list their deliveries, and resend them."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec

from everyrun.errors import NotFound
from everyrun.http import InvalidFieldError
from everyrun.log.cloudevents import timestamp
from everyrun.log.reading import end_offsets
from everyrun.log.topics import cluster_id
from everyrun.notifier.catalog import Format, subscription
from everyrun.notifier.changes import Change, note_change
from everyrun.notifier.notifications import TOPICS, trial_notification
from everyrun.notifier.retrying import Outcome
from everyrun.notifier.transport import Target, Transport, url_problem
from everyrun.redact import redact
from everyrun.settings import Settings
from everyrun.standard_webhooks import PREFIX, is_secret
from everyrun.store.sql import beside

_sql = beside(__file__, "receivers.sql")
#: Number of deliveries that one statement resends.
_AT_ONCE = 1000


class UnknownReceiverError(NotFound):
    """There is no receiver with this id."""

    def __init__(self, receiver_id: str) -> None:
        super().__init__(f"there is no receiver {receiver_id[:100]}; to list all, run: everyrun notify list")


def new_secret(format: Format) -> str:
    """Return a new secret for a receiver of this format, in the form that its consumers expect."""
    if format == "extend":
        return f"wss_{secrets.token_hex(16)}"
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def checked_secret(format: Format, given: str | None) -> str:
    """Return the given secret, or a new one if none is given. Raises InvalidFieldError, without the secret in it."""
    if given is None:
        return new_secret(format)
    if format == "everyrun" and not is_secret(given):
        raise InvalidFieldError("secret", f"must be {PREFIX} and 24 to 64 bytes in base64")
    if not (16 <= len(given) <= 200 and given.isascii() and given.isprintable() and " " not in given):
        raise InvalidFieldError("secret", "must have 16 to 200 ASCII characters without spaces")
    return given


def shown_url(url: str) -> str:
    """Return a URL as people may see it: without its query, which can hold a secret."""
    return redact(url)


class Receivers:
    """Changes receivers in the database. Errors of Kafka and asyncpg are raised as they are."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool) -> None:
        self._settings = settings
        self._pool = pool

    async def add(
        self, url: str, events: Sequence[str], workflows: Sequence[str], description: str, secret: str | None, by: str
    ) -> tuple[str, str]:
        """Add a receiver, and return its id and secret. It gets the events that are written to the log from now on.

        Raises InvalidFieldError.
        """
        problem = url_problem(url, self._settings)
        if problem is not None:
            raise InvalidFieldError("url", problem)
        wanted = subscription(events)
        if workflows and wanted.format != "extend":
            raise InvalidFieldError("workflows", "is possible only with Extend's events (workflow_run.*)")
        signing = checked_secret(wanted.format, secret)
        receiver_id = f"rcv_{secrets.token_hex(10)}"
        cluster = await cluster_id(self._settings)
        ends = await end_offsets(self._settings, TOPICS)
        columns = zip(*((topic, number, end) for (topic, number), end in ends.items()), strict=True)
        row = (receiver_id, url, wanted.format, wanted.events, list(workflows), description, signing, by)
        async with self._pool.acquire() as held, held.transaction():
            await held.execute(_sql["add"], *row)
            await held.execute(_sql["add_starts"], receiver_id, *map(list, columns), cluster)
            await note_change(held, receiver_id, "added", by)
        return receiver_id, signing

    async def every(self) -> list[dict[str, Any]]:
        """Return all receivers with the numbers of their deliveries, the oldest first."""
        return [_shown(row) for row in await self._pool.fetch(_sql["listed"], None)]

    async def one(self, receiver_id: str) -> dict[str, Any]:
        """Return a receiver as ``every`` does. Raises UnknownReceiverError."""
        row = await self._pool.fetchrow(_sql["listed"], receiver_id)
        if row is None:
            raise UnknownReceiverError(receiver_id)
        return _shown(row)

    async def pause(self, receiver_id: str, by: str) -> None:
        """Pause a receiver. Raises UnknownReceiverError."""
        await self._set_state(receiver_id, "paused", "paused", by)

    async def resume(self, receiver_id: str, by: str) -> None:
        """Resume a receiver. Raises UnknownReceiverError."""
        await self._set_state(receiver_id, "active", "resumed", by)

    async def _set_state(self, receiver_id: str, state: str, change: Change, by: str) -> None:
        async with self._pool.acquire() as held, held.transaction():
            if not (await held.execute(_sql["set_state"], receiver_id, state)).endswith(" 1"):
                raise UnknownReceiverError(receiver_id)
            await note_change(held, receiver_id, change, by)

    async def remove(self, receiver_id: str, by: str) -> int:
        """Remove a receiver, and return how many of its deliveries were waiting. Raises UnknownReceiverError."""
        async with self._pool.acquire() as held, held.transaction():
            waiting = await held.fetchval(_sql["remove"], receiver_id)
            if waiting is None:
                raise UnknownReceiverError(receiver_id)
            await held.execute(_sql["remove_starts"], receiver_id)
            await note_change(held, receiver_id, "removed", by)
        return int(waiting)

    async def rotate(self, receiver_id: str, given: str | None, overlap: float, by: str) -> tuple[str, datetime | None]:
        """Change the secret. The previous one stays valid for ``overlap`` seconds.

        Returns the secret, and the end of that time (None if ``overlap`` is 0). Raises UnknownReceiverError and
        InvalidFieldError.
        """
        target = await self._target(receiver_id)
        signing = checked_secret(target.format, given)
        async with self._pool.acquire() as held, held.transaction():
            row = await held.fetchrow(_sql["rotate"], receiver_id, signing, overlap)
            if row is None:
                raise UnknownReceiverError(receiver_id)
            await note_change(held, receiver_id, "secret-rotated", by)
        return signing, row["previous_until"]

    async def deliveries(
        self, receiver_id: str, state: str | None, event: str | None, after: tuple[datetime, str] | None, limit: int
    ) -> list[asyncpg.Record]:
        """Return up to ``limit`` deliveries, newest first, after the given one. Raises UnknownReceiverError."""
        await self._target(receiver_id)
        moment, identifier = after if after is not None else (None, None)
        found: list[asyncpg.Record] = await self._pool.fetch(
            _sql["deliveries"], receiver_id, state, event, moment, identifier, limit
        )
        return found

    async def resend(self, receiver_id: str, notification_ids: Sequence[str]) -> list[str]:
        """Make deliveries due at once, and return the ids of those that exist. Raises UnknownReceiverError."""
        await self._target(receiver_id)
        found = await self._pool.fetch(
            _sql["resend"], receiver_id, list(notification_ids), self._settings.notify_retry_for
        )
        return [row["notification_id"] for row in found]

    async def resend_all(self, receiver_id: str, states: Sequence[str], since: datetime) -> int:
        """Resend all deliveries in these states whose event was read since then; return their number.

        Raises UnknownReceiverError.
        """
        await self._target(receiver_id)
        began, number = await self._pool.fetchval("select now()"), 0
        while found := await self._pool.fetch(
            _sql["resend_all"], receiver_id, list(states), self._settings.notify_retry_for, since, began, _AT_ONCE
        ):
            number += len(found)
        return number

    async def test(self, receiver_id: str, transport: Transport) -> Outcome:
        """Send a test event now, once, and return what became of it. Raises UnknownReceiverError."""
        target = await self._target(receiver_id)
        made = trial_notification(target.format, f"test_{secrets.token_hex(10)}", timestamp(datetime.now(UTC)))
        return await transport.send(target, made.id, made.body)

    async def _target(self, receiver_id: str) -> Target:
        row = await self._pool.fetchrow(_sql["target"], receiver_id)
        if row is None:
            raise UnknownReceiverError(receiver_id)
        return Target(row["url"], row["format"], row["secret"], row["previous_secret"], row["previous_until"])


def _shown(row: asyncpg.Record) -> dict[str, Any]:
    found = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}
    return {**found, "url": shown_url(row["url"])}


def delivery_of(row: asyncpg.Record) -> dict[str, Any]:
    """Return a row of ``Receivers.deliveries`` as JSON. Pure."""
    found = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}
    tries = row["tries"]
    return {**found, "tries": msgspec.json.decode(tries) if isinstance(tries, str) else tries}
