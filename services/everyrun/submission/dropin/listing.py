"""Read the query of ``GET /workflow_runs``, and make its pages (SDK 1.20.0, workflow_runs/raw_client.py). Pure.

A nextPageToken of Everyrun's says where the page came from: from the result tables, or from a batch at Extend. The next
page comes from the same place. A token is valid only with the same filters.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import parse_qsl

import msgspec

from everyrun.extend.reserved import KEY
from everyrun.submission.dropin.extend_form import Problem

#: Default and maximum of maxPageSize, from older docs of Extend: the docs of this API version give neither.
_DEFAULT_PAGE, _MAX_PAGE = 10, 1000
_FILTERS = ("status", "workflowId", "batchId", "fileNameContains", "sortBy", "sortDir")
#: The fields of a WorkflowRunSummary that a WorkflowRun has too (SDK 1.20.0, types/workflow_run_summary.py).
_SUMMARY = (
    *("object", "id", "status", "workflow", "workflowVersion", "dashboardUrl", "files"),
    *("reviewedByUser", "reviewedAt", "initialRunAt", "startTime", "endTime", "rejectionNote"),
)
_NULL = msgspec.Raw(b"null")
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder().encode


class InTables(msgspec.Struct, frozen=True, tag="tables"):
    """Continue in the result tables after the run with this moment (RFC 3339, as the query computed it) and id."""

    moment: str
    run_id: str


class AtExtend(msgspec.Struct, frozen=True, tag="extend"):
    """Continue at Extend, in this one of the submission's batches (from 0), with Extend's token if there is one."""

    batch: int
    token: str | None = None


class _Token(msgspec.Struct, frozen=True):
    filters: str
    at: InTables | AtExtend


_token = msgspec.json.Decoder(_Token)


class ListQuery(msgspec.Struct, frozen=True):
    """A checked query. ``at`` is None on the first page. ``pairs`` are the parameters as they were sent."""

    pairs: tuple[tuple[str, str], ...]
    batch_id: str
    status: str | None
    workflow_id: str | None
    name_contains: str | None
    sort_by: Literal["updatedAt", "createdAt"]
    descending: bool
    size: int
    at: InTables | AtExtend | None

    def for_extend(self, batch_id: str, token: str | None) -> list[tuple[str, str]]:
        """Return the parameters for the same query about one batch at Extend."""
        rest = [pair for pair in self.pairs if pair[0] not in ("batchId", "nextPageToken")]
        return [*rest, ("batchId", batch_id), *([("nextPageToken", token)] if token is not None else [])]

    def token(self, at: InTables | AtExtend) -> str:
        """Return the nextPageToken that continues there."""
        return base64.urlsafe_b64encode(_encode(_Token(_bound(dict(self.pairs)), at))).decode()


def parameters(query: str) -> dict[str, str]:
    """Return the parameters of a query string. Raises Problem if one occurs twice or has a NUL character."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=50, errors="strict")
    except (ValueError, UnicodeError):
        raise Problem(400, "the query string is malformed") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise Problem(400, f"{name[:100]}: must be given once")
        if "\x00" in value:
            raise Problem(400, f"{name[:100]}: has a NUL character")
        found[name] = value
    return found


def list_query(given: Mapping[str, str]) -> ListQuery:
    """Return the query of a list of a batch's runs, or raise Problem."""
    size = given.get("maxPageSize", str(_DEFAULT_PAGE))
    if not (size.isascii() and size.isdigit() and 1 <= int(size[:5]) <= _MAX_PAGE):
        raise Problem(400, f"maxPageSize: must be an integer from 1 to {_MAX_PAGE}")
    by, direction = given.get("sortBy", "updatedAt"), given.get("sortDir", "desc")
    if by not in ("updatedAt", "createdAt"):
        raise Problem(400, "sortBy: must be updatedAt or createdAt")
    if direction not in ("asc", "desc"):
        raise Problem(400, "sortDir: must be asc or desc")
    return ListQuery(
        tuple(given.items()),
        given["batchId"],
        given.get("status"),
        given.get("workflowId"),
        given.get("fileNameContains"),
        "createdAt" if by == "createdAt" else "updatedAt",
        direction == "desc",
        int(size),
        _read_token(given),
    )


def _bound(given: Mapping[str, str]) -> str:
    return hashlib.sha256(_encode([given.get(name) for name in _FILTERS])).hexdigest()[:16]


def _read_token(given: Mapping[str, str]) -> InTables | AtExtend | None:
    text = given.get("nextPageToken")
    if text is None:
        return None
    try:
        token = _token.decode(base64.urlsafe_b64decode(text.encode()))
        if isinstance(token.at, InTables) and "\0" in token.at.run_id + token.at.moment:
            raise ValueError
    except (ValueError, binascii.Error, msgspec.DecodeError, RecursionError):
        raise Problem(400, "nextPageToken: is not valid") from None
    if token.filters != _bound(given):
        raise Problem(400, "nextPageToken: belongs to a query with other filters")
    return token.at


def time_text(moment: datetime) -> str:
    """Return a time as Extend writes it: RFC 3339 in UTC, with milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def run_shown(run: bytes | str, batch_id: str | None) -> bytes:
    """Return a WorkflowRun for the caller: with the batchId that the caller knows, without Everyrun's reserved key."""
    fields = _fields.decode(run)
    fields["batchId"] = msgspec.Raw(_encode(batch_id))
    _remove_key(fields)
    # Postgres writes spaces between the tokens, Extend does not.
    return msgspec.json.format(_encode(fields), indent=-1)


def _remove_key(fields: dict[str, msgspec.Raw]) -> None:
    metadata = bytes(fields.get("metadata", _NULL))
    if KEY.encode() in metadata and metadata.startswith(b"{"):
        kept = _fields.decode(metadata)
        kept.pop(KEY, None)
        fields["metadata"] = msgspec.Raw(_encode(kept))


def summary(run: bytes | str, batch_id: str, created_at: datetime, updated_at: datetime) -> dict[str, Any]:
    """Return the WorkflowRunSummary of a run that the tables have.

    A WorkflowRun has no createdAt and no updatedAt. So createdAt is its initialRunAt or, if it has none, when Extend
    accepted its batch. ``updated_at`` is when Everyrun learned of its state.
    """
    fields = _fields.decode(run)
    shown: dict[str, Any] = {name: fields.get(name, _NULL) for name in _SUMMARY}
    shown["usage"] = _usage(fields.get("usage", _NULL))
    initial = shown["initialRunAt"]
    created = time_text(created_at) if bytes(initial) == b"null" else initial
    shown.update(batchId=batch_id, createdAt=created, updatedAt=time_text(updated_at))
    return shown


def _usage(usage: msgspec.Raw) -> Any:
    if not bytes(usage).startswith(b"{"):
        return usage
    return {name: value for name, value in _fields.decode(usage).items() if name != "breakdown"}


def page(data: list[Any], token: str | None) -> dict[str, Any]:
    """Return a page in the form of Extend's lists. On the last page, nextPageToken is absent."""
    return {"object": "list", "data": data, **({} if token is None else {"nextPageToken": token})}


class ExtendPage(msgspec.Struct):
    """A page that Extend returned. ``data`` are the summaries as received."""

    data: list[msgspec.Raw]
    nextPageToken: str | None = None  # noqa: N815


_page = msgspec.json.Decoder(ExtendPage)


def read_page(content: bytes) -> ExtendPage:
    """Decode a page that Extend returned. Raises msgspec.DecodeError, UnicodeDecodeError or RecursionError."""
    return _page.decode(content)


class _Named(msgspec.Struct):
    batchId: str | None = None  # noqa: N815


_named = msgspec.json.Decoder(_Named)


def batch_of(run: bytes | msgspec.Raw) -> str | None:
    """Return the batchId of a run or summary as received. Raises the errors of ``read_page``."""
    return _named.decode(run).batchId


def summary_shown(run: msgspec.Raw, batch_id: str) -> dict[str, Any]:
    """Return a summary as received, but with this batchId."""
    return {**_fields.decode(run), "batchId": batch_id}
