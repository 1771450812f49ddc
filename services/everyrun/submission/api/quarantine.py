"""Serve decisions about quarantined messages. The query service lists the messages."""

from __future__ import annotations

from typing import Annotated, Any

from aiokafka.errors import KafkaError
from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field

from everyrun.http import ApiError, scope
from everyrun.openapi import answers
from everyrun.submission.api.answers import Outcomes
from everyrun.submission.api.doubts import decided_by
from everyrun.submission.decisions.quarantine import Quarantine

Source = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00]+$")]


class QuarantineDecision(BaseModel):
    """The messages to decide about, and the reason."""

    model_config = ConfigDict(extra="forbid")

    sources: list[Source] = Field(
        min_length=1, max_length=1000, description="The sources of the messages, as the quarantine lists them."
    )
    reason: str = Field("", max_length=1000, description="The reason, which is kept with the decision.")
    by: str = Field(
        "", max_length=200, description="Who decides; kept with the decision, before the name of the token."
    )


def quarantine_routes(app: FastAPI, quarantine: Quarantine) -> None:
    """Add ``/v1/quarantine/retry`` and ``/v1/quarantine/discard``."""

    @app.post("/v1/quarantine/retry", dependencies=[scope("operate")])
    @answers(Outcomes)
    async def retry(request: Request, decision: QuarantineDecision) -> dict[str, Any]:
        """Interpret messages again with the current rules, and publish those that are understood to their topics.

        Each message gets an outcome: published; dropped (understood, but there is nothing to publish); not-understood;
        or unknown (there is no such message).
        """
        try:
            return {
                "decided": await quarantine.retry(decision.sources, decided_by(request, decision.by), decision.reason)
            }
        except KafkaError as error:
            raise _unavailable(error) from None

    @app.post("/v1/quarantine/discard", dependencies=[scope("operate")])
    @answers(Outcomes)
    async def discard(request: Request, decision: QuarantineDecision) -> dict[str, Any]:
        """Mark messages as discarded; they are kept.

        Each message gets an outcome: discarded; not-open (it was retried or discarded before); or unknown (there is no
        such message).
        """
        if not decision.reason.strip():
            raise ApiError(422, "INVALID_REQUEST", "reason: is required; it is kept with the decision", field="reason")
        try:
            return {
                "decided": await quarantine.discard(decision.sources, decided_by(request, decision.by), decision.reason)
            }
        except KafkaError as error:
            raise _unavailable(error) from None


def _unavailable(error: KafkaError) -> ApiError:
    message = (
        "Kafka did not accept the decision; send the same request again: it completes the rest, and repeats nothing"
    )
    return ApiError(503, "UNAVAILABLE", f"{message} ({type(error).__name__})")
