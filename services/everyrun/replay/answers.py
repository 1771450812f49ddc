"""What the replay service answers, as types. They are for the OpenAPI document: routes answer what they read."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

Time = Annotated[str, Meta(description="RFC 3339, with its offset.")]


class JobLine(Struct, frozen=True, kw_only=True):
    """A job: what was asked, and how far it is."""

    job_id: str
    kind: str
    arguments: dict[str, Any]
    state: Annotated[str, Meta(description="WAITING, RUNNING, DONE, FAILED or CANCELLED.")]
    asked_by: Annotated[str, Meta(description="The name of the token.")]
    records_done: int
    records_total: int
    rate: Annotated[float, Meta(description="Records a second.")]
    seconds_left: float | None
    message: Annotated[str | None, Meta(description="Why it failed, or what it waits for.")]
    created_at: Time
    started_at: Time | None
    ended_at: Time | None


class JobShown(JobLine, frozen=True, kw_only=True):
    """A job with its outcome."""

    outcome: Annotated[dict[str, Any] | None, Meta(description="What it found or made, once it is DONE.")]


class Jobs(Struct, frozen=True):
    """The newest jobs, without their outcomes."""

    jobs: list[JobLine]
