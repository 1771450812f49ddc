"""The notifier's HTTP API: receivers, their deliveries, and tests. Every route needs the scope ``operate``."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import asyncpg
import msgspec
from aiokafka.errors import KafkaError
from fastapi import FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from everyrun.http import ApiError, InvalidFieldError, api, caller, scope
from everyrun.notifier import answers as a
from everyrun.notifier.receivers import Receivers, delivery_of
from everyrun.notifier.transport import Transport
from everyrun.openapi import answers
from everyrun.settings import Settings

_NO_NUL = r"^[^\x00]*$"
_Id = Annotated[str, Field(min_length=1, max_length=255, pattern=_NO_NUL)]
_By = Annotated[
    str, Query(max_length=200, pattern=_NO_NUL, description="Who decides; kept before the name of the token.")
]
_NOT_FOUND = {404: "NOT_FOUND: there is no receiver with this id."}


class NewReceiver(BaseModel):
    """A receiver to add."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    url: str = Field(min_length=1, max_length=2000, description="The address (https://...) to which events are posted.")
    events: list[_Id] = Field(
        min_length=1, max_length=50, description="Names of events, or patterns such as workflow_run.*; of one format."
    )
    workflows: list[_Id] = Field(
        default_factory=list, max_length=1000, description="Only events of these workflows; empty for all."
    )
    description: str = Field("", max_length=200, pattern=_NO_NUL, description="What the receiver is for.")
    secret: str | None = Field(
        None, description="A secret that the receiver has already. Default: a new one, which the answer shows."
    )
    by: str = Field("", max_length=200, pattern=_NO_NUL, description="Who adds it; kept before the name of the token.")


class Rotation(BaseModel):
    """A change of a receiver's secret."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    secret: str | None = Field(None, description="The new secret. Default: a new one, which the answer shows.")
    overlap_seconds: float = Field(
        86_400.0, ge=0, le=30 * 86_400, description="How long the previous secret stays valid; 0 for not at all."
    )


class Resend(BaseModel):
    """The deliveries to send again: either by their ids, or all of a state."""

    model_config = ConfigDict(extra="forbid")

    notification_ids: list[_Id] = Field(default_factory=list, max_length=1000, description="Ids of events.")
    state: Literal["given_up", "delivered", "all"] | None = Field(
        None, description="All deliveries in this state; all: in both. Without it, only the ids are resent."
    )
    since_seconds: float = Field(
        3600.0, gt=0, le=366 * 86_400, description="With a state: only events that were read in this last time."
    )


def notifier_api(settings: Settings, pool: asyncpg.Pool, transport: Transport, wake: Callable[[], None]) -> FastAPI:
    """Build the API. ``wake`` is called when a receiver was changed, or when deliveries have become due."""
    title = "Add receivers of events, and see, resend and test their deliveries."
    app = api("Everyrun notifier", title, settings, pool)
    receivers = Receivers(settings, pool)
    operate = [scope("operate")]

    @app.post("/v1/receivers", status_code=201, dependencies=operate)
    @answers(a.Added)
    async def add(request: Request, new: NewReceiver) -> dict[str, Any]:
        """Add a receiver. It gets the events that happen from now on. The answer shows its secret, only this once."""
        try:
            receiver_id, secret = await receivers.add(
                new.url, new.events, new.workflows, new.description, new.secret, _decider(request, new.by)
            )
        except KafkaError as error:
            message = (
                f"Kafka does not answer, so it is unknown where the log ends; retry later ({type(error).__name__})"
            )
            raise ApiError(503, "UNAVAILABLE", message) from None
        wake()
        return {"receiver": await receivers.one(receiver_id), "secret": secret}

    @app.get("/v1/receivers", dependencies=operate)
    @answers(a.Receivers)
    async def every() -> dict[str, Any]:
        """List all receivers, the oldest first."""
        return {"receivers": await receivers.every()}

    @app.get("/v1/receivers/{receiver_id}", dependencies=operate)
    @answers(a.Receiver, _NOT_FOUND)
    async def one(receiver_id: str) -> dict[str, Any]:
        """Return a receiver."""
        return await receivers.one(_printable(receiver_id))

    @app.delete("/v1/receivers/{receiver_id}", dependencies=operate)
    @answers(a.Removed, _NOT_FOUND)
    async def remove(request: Request, receiver_id: str, by: _By = "") -> dict[str, Any]:
        """Remove a receiver. Its waiting deliveries are not sent."""
        waiting = await receivers.remove(_printable(receiver_id), _decider(request, by))
        wake()
        return {"receiver_id": receiver_id, "waiting": waiting}

    @app.post("/v1/receivers/{receiver_id}/pause", dependencies=operate)
    @answers(a.Receiver, _NOT_FOUND)
    async def pause(request: Request, receiver_id: str, by: _By = "") -> dict[str, Any]:
        """Pause a receiver: its deliveries wait, and are given up if they wait longer than they would be retried."""
        await receivers.pause(_printable(receiver_id), _decider(request, by))
        wake()
        return await receivers.one(receiver_id)

    @app.post("/v1/receivers/{receiver_id}/resume", dependencies=operate)
    @answers(a.Receiver, _NOT_FOUND)
    async def resume(request: Request, receiver_id: str, by: _By = "") -> dict[str, Any]:
        """Resume a receiver, and send the next request at once, even if earlier ones failed."""
        await receivers.resume(_printable(receiver_id), _decider(request, by))
        wake()
        return await receivers.one(receiver_id)

    @app.post("/v1/receivers/{receiver_id}/rotate", dependencies=operate)
    @answers(a.Rotated, _NOT_FOUND)
    async def rotate(request: Request, receiver_id: str, rotation: Rotation, by: _By = "") -> dict[str, Any]:
        """Change the secret of a receiver. The answer shows the new one, only this once.

        While both secrets are valid, a request in Everyrun's format has a signature of each. Extend's format has room
        for one: until then, the previous secret signs.
        """
        secret, until = await receivers.rotate(
            _printable(receiver_id), rotation.secret, rotation.overlap_seconds, _decider(request, by)
        )
        wake()
        previous_until = None if until is None else until.isoformat()
        return {"receiver_id": receiver_id, "secret": secret, "previous_until": previous_until}

    @app.get("/v1/receivers/{receiver_id}/deliveries", dependencies=operate)
    @answers(a.Deliveries, _NOT_FOUND)
    async def deliveries(
        receiver_id: str,
        state: Literal["waiting", "delivered", "given_up"] | None = None,
        event: Annotated[str | None, Query(max_length=255, pattern=_NO_NUL)] = None,
        cursor: Annotated[str | None, Query(max_length=500)] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """List the deliveries of a receiver, newest first, with their last tries."""
        after = _read_cursor(cursor)
        rows = await receivers.deliveries(_printable(receiver_id), state, event, after, limit + 1)
        following = _cursor(rows[limit - 1]) if len(rows) > limit else None
        return {"deliveries": [delivery_of(row) for row in rows[:limit]], "next_cursor": following}

    @app.post("/v1/receivers/{receiver_id}/resend", status_code=202, dependencies=operate)
    @answers(a.Resent, _NOT_FOUND)
    async def resend(receiver_id: str, wanted: Resend) -> dict[str, Any]:
        """Send deliveries again, with the same ids and bodies, and a fresh signature."""
        _printable(receiver_id)
        if bool(wanted.notification_ids) == (wanted.state is not None):
            raise InvalidFieldError("notification_ids", "give either the ids of events or a state")
        if wanted.state is None:
            found = await receivers.resend(receiver_id, wanted.notification_ids)
            answer = {"resent": len(found), "unknown": sorted(set(wanted.notification_ids).difference(found))}
        else:
            states = ["given_up", "delivered"] if wanted.state == "all" else [wanted.state]
            since = datetime.now(UTC) - timedelta(seconds=wanted.since_seconds)
            answer = {"resent": await receivers.resend_all(receiver_id, states, since), "unknown": []}
        wake()
        return answer

    @app.post("/v1/receivers/{receiver_id}/test", dependencies=operate)
    @answers(a.Tested, _NOT_FOUND)
    async def test(receiver_id: str) -> dict[str, Any]:
        """Send a test event now, once, and return the receiver's answer. Its type is everyrun.test."""
        outcome = await receivers.test(_printable(receiver_id), transport)
        shown = {"status": outcome.status, "seconds": round(outcome.seconds, 3), "answer": outcome.answer}
        return {"accepted": outcome.accepted, **shown, "error": outcome.error}

    return app


def _decider(request: Request, by: str) -> str:
    return f"{by} ({caller(request)})" if by else caller(request)


def _printable(receiver_id: str) -> str:
    if not receiver_id.isprintable():
        raise InvalidFieldError("receiver_id", "has a character that cannot be printed")
    return receiver_id


def _cursor(row: asyncpg.Record) -> str:
    text = msgspec.json.encode([row["created_at"], row["notification_id"]])
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


def _read_cursor(cursor: str | None) -> tuple[datetime, str] | None:
    if cursor is None:
        return None
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        moment, identifier = msgspec.json.decode(text, type=tuple[datetime, str])
    except (ValueError, msgspec.DecodeError):
        raise InvalidFieldError("cursor", "is malformed; use the next_cursor of a page") from None
    if moment.tzinfo is None or not identifier.isprintable():
        raise InvalidFieldError("cursor", "is malformed; use the next_cursor of a page")
    return moment, identifier
