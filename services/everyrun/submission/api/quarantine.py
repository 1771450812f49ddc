"""The routes by which the quarantine is worked: decisions, as events. The query service shows it."""

from __future__ import annotations

from typing import Annotated, Any

from aiokafka.errors import KafkaError
from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field

from everyrun.http import ApiError, caller, scope
from everyrun.openapi import answers
from everyrun.submission.api.answers import Outcomes
from everyrun.submission.quarantine import Quarantine

Source = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00]+$")]


class Decision(BaseModel):
    """Which messages, and why."""

    model_config = ConfigDict(extra="forbid")

    sources: list[Source] = Field(min_length=1, max_length=1000, description="As the quarantine shows them.")
    reason: str = Field("", max_length=1000, description="Why; kept with the decision.")
    by: str = Field("", max_length=200, description="Who, beside the name of the token; kept with the decision.")


def quarantine_routes(app: FastAPI, quarantine: Quarantine) -> None:
    """Add ``/v1/quarantine/retry`` and ``/v1/quarantine/discard``."""

    @app.post("/v1/quarantine/retry", dependencies=[scope("operate")])
    @answers(Outcomes)
    async def retry(request: Request, decision: Decision) -> dict[str, Any]:
        """Look at messages again with the rules of today; what is understood is published where it belongs.

        Each gets an outcome: published, dropped (understood, and of no use), not-understood, unknown.
        """
        try:
            return {"decided": await quarantine.retry(decision.sources, _who(request, decision), decision.reason)}
        except KafkaError as error:
            raise _away(error) from None

    @app.post("/v1/quarantine/discard", dependencies=[scope("operate")])
    @answers(Outcomes)
    async def discard(request: Request, decision: Decision) -> dict[str, Any]:
        """Want nothing more done about messages. They are kept, marked. Outcomes: discarded, not-open, unknown."""
        if not decision.reason.strip():
            raise ApiError(422, "INVALID_REQUEST", "reason: say why; it is kept with the decision", field="reason")
        try:
            return {"decided": await quarantine.discard(decision.sources, _who(request, decision), decision.reason)}
        except KafkaError as error:
            raise _away(error) from None


def _who(request: Request, decision: Decision) -> str:
    name = caller(request)
    return f"{decision.by} ({name})" if decision.by else name


def _away(error: KafkaError) -> ApiError:
    message = "Kafka did not take it; the same request again does what is left, and doubles nothing"
    return ApiError(503, "UNAVAILABLE", f"{message} ({type(error).__name__})")
