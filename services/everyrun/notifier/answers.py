"""Define the answers of the notifier's API."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from everyrun.notifier.catalog import Format

Time = Annotated[str, Meta(description="RFC 3339, with an offset from UTC.")]


class Receiver(Struct, frozen=True, kw_only=True):
    """A receiver, with the numbers of its deliveries by state."""

    receiver_id: str
    url: Annotated[str, Meta(description="The address, without its query.")]
    format: Annotated[
        Format, Meta(description="extend: Extend's events in Extend's format; everyrun: Standard Webhooks.")
    ]
    events: list[str]
    workflows: Annotated[list[str], Meta(description="The workflows whose events it gets; empty for all.")]
    description: str
    state: Literal["active", "paused"]
    created_at: Time
    created_by: Annotated[str, Meta(description="Who added it.")]
    failures: Annotated[int, Meta(description="Number of requests that failed in a row; 0 after a success.")]
    failing_since: Annotated[Time | None, Meta(description="When the first of them failed.")]
    last_error: Annotated[str | None, Meta(description="Why the last request failed; null after a success.")]
    previous_until: Annotated[
        Time | None, Meta(description="Until when the previous secret is valid, if there is one.")
    ]
    waiting: Annotated[int, Meta(description="Deliveries that are to be sent, or to be retried.")]
    delivered: int
    given_up: Annotated[int, Meta(description="Deliveries that failed for EVERYRUN_NOTIFY_RETRY_FOR.")]
    oldest_waiting: Annotated[Time | None, Meta(description="When the event of the oldest waiting delivery was read.")]


class Receivers(Struct, frozen=True):
    """All receivers, the oldest first."""

    receivers: list[Receiver]


class Added(Struct, frozen=True):
    """A new receiver, and its secret, which is shown only now."""

    receiver: Receiver
    secret: Annotated[str, Meta(description="The signing secret. It cannot be shown again.")]


class Removed(Struct, frozen=True):
    """The receiver was removed."""

    receiver_id: str
    waiting: Annotated[int, Meta(description="Number of its deliveries that were waiting, and are not sent any more.")]


class Rotated(Struct, frozen=True):
    """The new secret, which is shown only now."""

    receiver_id: str
    secret: Annotated[str, Meta(description="The new signing secret. It cannot be shown again.")]
    previous_until: Annotated[
        Time | None, Meta(description="Until when the previous secret is valid; null if it is not.")
    ]


class Try(Struct, frozen=True):
    """A request to a receiver."""

    at: Time
    status: Annotated[int | None, Meta(description="The HTTP status; null if there was no answer.")]
    seconds: float
    answer: Annotated[str, Meta(description="The first 200 characters of the answer, without secrets.")]
    error: Annotated[str, Meta(description="Why there was no answer.")]


class Delivery(Struct, frozen=True, kw_only=True):
    """A delivery of an event to a receiver."""

    notification_id: Annotated[str, Meta(description="The id of the event; also the header webhook-id.")]
    event: str
    subject: Annotated[str, Meta(description="What the event is about: a run, submission, chunk, workflow or message.")]
    state: Literal["waiting", "delivered", "given_up"]
    attempts: int
    created_at: Annotated[Time, Meta(description="When the notifier read the event from the log.")]
    ended_at: Time | None
    next_at: Annotated[Time | None, Meta(description="If it is waiting: when it is due.")]
    tries: Annotated[list[Try], Meta(description="The last 20 requests, the oldest first.")]


class Deliveries(Struct, frozen=True):
    """A page of deliveries, newest first."""

    deliveries: list[Delivery]
    next_cursor: Annotated[str | None, Meta(description="Cursor of the next page; null if this is the last page.")]


class Resent(Struct, frozen=True):
    """The deliveries that are sent again."""

    resent: Annotated[int, Meta(description="Number of deliveries that became due.")]
    unknown: Annotated[list[str], Meta(description="The ids of the request for which the receiver has no delivery.")]


class Tested(Struct, frozen=True):
    """The outcome of sending the test event."""

    accepted: Annotated[bool, Meta(description="True if the receiver answered with a status of 2xx.")]
    status: Annotated[int | None, Meta(description="The HTTP status; null if there was no answer.")]
    seconds: float
    answer: Annotated[str, Meta(description="The first 200 characters of the answer, without secrets.")]
    error: Annotated[str, Meta(description="Why there was no answer.")]
