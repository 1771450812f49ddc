"""What the calls that take rows have in common: the body, its limits, and how bad rows are answered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from email.message import Message
from typing import Any, NamedTuple

import msgspec
from fastapi import Request

from everyrun.errors import Unavailable
from everyrun.http import ApiError
from everyrun.submission.api.body import BodyTooLargeError, receive
from everyrun.submission.intake import parse
from everyrun.submission.intake.accept import BadRowsError
from everyrun.submission.intake.columns import Columns
from everyrun.submission.intake.text import EncodingError
from everyrun.submission.intake.workflows import UnknownVersionError, UnknownWorkflowError, Workflows

_ROW = {
    "type": "object",
    "additionalProperties": False,
    "required": ["file"],
    "properties": {
        "id": {"type": "string", "minLength": 1, "maxLength": 255, "description": "Unique in the submission."},
        "file": {
            "type": "object",
            "description": "Exactly one of url (with name and settings.password), id, and text (with name).",
            "properties": {
                "url": {"type": "string"},
                "id": {"type": "string"},
                "text": {"type": "string"},
                "name": {"type": "string"},
                "settings": {"type": "object", "properties": {"password": {"type": "string"}}},
            },
        },
        "metadata": {"type": "object", "description": "At most 10 KB; no key begins everyrun:."},
    },
}
BODY = {
    "required": True,
    "content": {
        parse.JSON: {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "properties": {"inputs": {"type": "array", "minItems": 1, "items": _ROW}},
            }
        },
        parse.NDJSON: {"schema": {"type": "string", "description": "A row, as in inputs above, a line."}},
        parse.CSV: {"schema": {"type": "string", "description": (Columns.row.__doc__ or "").strip()}},
    },
}


#: What 422 of a call that takes rows means.
UPLOAD_REFUSED = (
    "BAD_ROWS: rows are wrong, `rows` lists the first. NO_ROWS: there are none. UNREADABLE: the body is not what its "
    "content-type says. INVALID_REQUEST: a parameter is wrong; `field` names it. UNKNOWN_WORKFLOW: Extend does not "
    "have the workflow; `did_you_mean` lists similar ids. UNKNOWN_VERSION: the workflow has no such "
    "version; `did_you_mean` lists those that it has. Nothing was taken in."
)

#: Of the pool's connections (submission/app.py) the others are left to the API, the dispatcher and the resolver.
_AT_ONCE = 4


class UploadsFullError(Unavailable):
    """As many uploads as are taken at a time are under way; the text says what to do."""

    code = "BUSY"
    retry_after = 10


class Uploads:
    """The uploads under way: each takes disk while its caller sends, and then a connection to Postgres."""

    def __init__(self) -> None:
        self._sizes: dict[object, int] = {}

    def __len__(self) -> int:
        """Return how many are under way."""
        return len(self._sizes)

    @property
    def size(self) -> int:
        """The bytes that all of them have on disk."""
        return sum(self._sizes.values())

    @contextmanager
    def one_more(self) -> Iterator[Callable[[int], None]]:
        """Make room for one upload while the block runs, and give what its size is told to. Raises UploadsFullError."""
        if len(self) >= _AT_ONCE:
            raise UploadsFullError(
                f"{_AT_ONCE} uploads are under way, which is as many as are taken at once; try again"
            )
        upload = object()
        self._sizes[upload] = 0
        try:
            yield lambda size: self._sizes.update({upload: size})
        finally:
            del self._sizes[upload]


class Kind(NamedTuple):
    """What a request says of its body."""

    content_type: str
    charset: str | None
    gzip: bool


def kind_of(request: Request) -> Kind:
    """Return what the head says of the body. Raises ApiError (415) for what is not taken."""
    # The parser of mail heads knows quotes and parameters.
    head = Message()
    head["content-type"] = request.headers.get("content-type", "")
    content_type = head.get_content_type() if head["content-type"] else ""
    if content_type not in parse.KINDS:
        kinds = f"{parse.JSON}, {parse.NDJSON} or {parse.CSV}"
        raise ApiError(415, "UNSUPPORTED_MEDIA_TYPE", f"content-type must be {kinds}, not {content_type!r}")
    charset = head.get_param("charset")
    codings = request.headers.getlist("content-encoding")
    coding = ",".join(codings).strip().lower()
    if coding not in ("", "identity", "gzip", "x-gzip"):
        message = f"Content-Encoding {coding!r} is not taken: send the body as it is, or with gzip"
        raise ApiError(415, "UNSUPPORTED_ENCODING", message)
    return Kind(content_type, charset if isinstance(charset, str) else None, coding.endswith("gzip"))


@asynccontextmanager
async def rows_of(request: Request, uploads: Uploads, most: int) -> AsyncIterator[AsyncIterator[parse.Piece]]:
    """Receive a request's body whole, of ``most`` bytes when it is unpacked, and give its rows to the block.

    While the body comes in, no transaction is open. Raises ApiError, UploadsFullError.
    """
    kind = kind_of(request)
    with uploads.one_more() as grown:
        try:
            file = await receive(request.stream(), most, kind.gzip, grown)
        except BodyTooLargeError:
            what = "upload, unpacked," if kind.gzip else "upload"
            raise ApiError(413, "TOO_LARGE", f"the {what} is larger than {most} bytes; split it") from None
        except OSError as error:
            message = f"no room for the upload in the folder for temporary files ({error.strerror}); see TMPDIR"
            raise ApiError(507, "NO_ROOM", message) from None
        except parse.UploadError as error:
            raise ApiError(422, "UNREADABLE", str(error)) from None
        with file:
            try:
                yield parse.pieces(parse.Reading(kind.content_type, file, parse.Options(kind.charset)))
            except EncodingError as error:
                remedy = "" if error.named else ": content-type: text/csv; charset=windows-1252"
                raise ApiError(422, "UNREADABLE", f"{error}{remedy}") from None
            except parse.UploadError as error:
                raise ApiError(422, "UNREADABLE", str(error)) from None
            except BadRowsError as error:
                raise bad_rows(error) from None


def bad_rows(error: BadRowsError) -> ApiError:
    """The answer 422 that lists what is wrong with which row."""
    if not error.count:
        return ApiError(422, "NO_ROWS", "the upload has no rows; nothing was taken in", bad_rows=0, rows=[])
    message = f"{error.count} bad rows, so nothing was taken in; the first {len(error.rows)} are listed"
    rows = [msgspec.to_builtins(row) for row in error.rows]
    return ApiError(422, "BAD_ROWS", message, bad_rows=error.count, rows=rows)


def no_nul(field: str, value: str) -> None:
    """Refuse with 422 what Postgres cannot hold."""
    if "\x00" in value:
        raise ApiError(422, "INVALID_REQUEST", f"{field}: has a NUL character", field=field)


async def check_workflow(workflows: Workflows | None, workflow_id: str, version: str | None) -> str | None:
    """Return why Extend could not be asked about a workflow and its version; None if it has them.

    Raises ApiError if it has not.
    """
    if workflows is None:
        return None
    try:
        return await workflows.check(workflow_id, version)
    except UnknownWorkflowError as error:
        raise ApiError(422, "UNKNOWN_WORKFLOW", str(error), field="workflow_id", did_you_mean=error.near) from None
    except UnknownVersionError as error:
        more: dict[str, Any] = {"field": "workflow_version", "did_you_mean": error.near}
        raise ApiError(422, "UNKNOWN_VERSION", str(error), **more) from None
