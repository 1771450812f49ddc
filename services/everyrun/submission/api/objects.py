"""Check objects in buckets for callers, before they submit them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query

from everyrun import objects
from everyrun.http import ApiError, scope
from everyrun.openapi import answers
from everyrun.submission.api.answers import CheckedObject
from everyrun.submission.api.request_body import refuse_nul
from everyrun.submission.dispatch.object_links import ObjectLinks


def object_routes(app: FastAPI, links: ObjectLinks) -> None:
    """Add ``/v1/objects/check``."""

    @app.get("/v1/objects/check", dependencies=[scope("submit")])
    @answers(
        CheckedObject,
        {422: "OBJECT_UNREADABLE: the service cannot read or presign the object; the message says why and what to do."},
    )
    async def check(
        address: Annotated[str, Query(alias="object", min_length=1, max_length=2000)],
    ) -> dict[str, Any]:
        """Check, before an upload, that the service can read and presign an object (s3://, gs://, az://)."""
        refuse_nul("object", address)
        try:
            problem = await links.problem_of(objects.parse(address))
        except objects.ObjectAddressError as error:
            raise ApiError(422, "INVALID_REQUEST", f"{address} {error}", field="object") from None
        if problem is not None:
            remedy = "give the submission service credentials that can read it (docs/how-to/sources.md)"
            raise ApiError(
                422, "OBJECT_UNREADABLE", f"the submission service cannot read {address}: {problem}; {remedy}"
            )
        return {"object": address}
