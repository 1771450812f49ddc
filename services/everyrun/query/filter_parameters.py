"""Declare the filters of results as query parameters, for the routes that have them and for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Query, Request

from everyrun.query.filters import STATUSES, Filter, read_filter

Name = Annotated[str | None, Query(max_length=600)]
Names = Annotated[list[str] | None, Query()]
_SINCE = "RFC 3339, or a date (midnight UTC). Inputs at this moment fit."
_UNTIL = "RFC 3339, or a date (midnight UTC). Inputs at this moment do not fit."


def _filter(
    request: Request,
    _batch_id: Annotated[Name, Query(alias="batch_id", description="The batchId of the input's current run.")] = None,
    _external_id: Annotated[Name, Query(alias="external_id", description="The id that the caller gave.")] = None,
    _status: Annotated[
        Names,
        Query(alias="status", description=f"Can be repeated: any of these. Known statuses: {', '.join(STATUSES)}."),
    ] = None,
    _failure_reason: Annotated[
        Names, Query(alias="failure_reason", description="Can be repeated: any of these.")
    ] = None,
    _metadata: Annotated[
        str | None,
        Query(
            alias="metadata.*",
            description="`metadata.invoice=A-17`: the field `invoice` of the metadata has this value. A number or a "
            "boolean is given as its JSON. Several fields must all fit.",
        ),
    ] = None,
    _settled_since: Annotated[str | None, Query(alias="settled_since", description=f"Settled since: {_SINCE}")] = None,
    _settled_until: Annotated[str | None, Query(alias="settled_until", description=f"Settled before: {_UNTIL}")] = None,
    _observed_since: Annotated[
        str | None, Query(alias="observed_since", description=f"State learned since: {_SINCE}")
    ] = None,
    _observed_until: Annotated[
        str | None, Query(alias="observed_until", description=f"State learned before: {_UNTIL}")
    ] = None,
    _text: Annotated[
        str | None,
        Query(
            alias="text",
            max_length=600,
            description="This text occurs in the id, the name or URL of the file, the failure's reason or message, or "
            "a value of the metadata. Capitals are ignored; those beyond ASCII only in a database with such a locale.",
        ),
    ] = None,
) -> Filter:
    """Return the filter of a request. Raises InvalidFieldError, which names the parameter."""
    return read_filter(request.query_params.multi_items(), submission_id=request.path_params.get("submission_id"))


#: The parameter of a route that has the filters.
Wanted = Annotated[Filter, Depends(_filter)]


def statement(template: str, **parts: Any) -> str:
    """Return a statement with its conditions and its order, which are texts of ours, in the places that it names."""
    for name, text in parts.items():
        template = template.replace(f"/*{name}*/", text)
    return template
