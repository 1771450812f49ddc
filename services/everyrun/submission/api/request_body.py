"""Receive the body of an upload on disk, and build the answers about bad rows.

This module has over 300 lines, because it also holds the description of the body for the OpenAPI document, next to the
code that reads such a body.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from email.message import Message
from typing import IO, Any, NamedTuple

import msgspec
from fastapi import Request

from everyrun.errors import Unavailable
from everyrun.http import ApiError
from everyrun.submission.intake import parse
from everyrun.submission.intake.accept import BadRowsError
from everyrun.submission.intake.columns import Columns
from everyrun.submission.intake.text import EncodingError, UploadError
from everyrun.submission.intake.workflows import UnknownVersionError, UnknownWorkflowError, Workflows

_ROW = {
    "type": "object",
    "additionalProperties": False,
    "required": ["file"],
    "properties": {
        "id": {"type": "string", "minLength": 1, "maxLength": 255, "description": "Unique in the submission."},
        "file": {
            "type": "object",
            "description": "Exactly one of url, id, text and object. A url, text or object may have a name. A url or "
            "object may have settings. An object may have an etag: if the object has another ETag when its batch is "
            "sent, the input is refused.",
            "properties": {
                "url": {"type": "string"},
                "id": {"type": "string"},
                "text": {"type": "string"},
                "object": {
                    "type": "string",
                    "description": "An object in a bucket: s3://BUCKET/KEY, gs://BUCKET/KEY or az://CONTAINER/KEY. "
                    "Everyrun presigns a link to it when it sends the batch.",
                },
                "etag": {"type": "string"},
                "name": {"type": "string"},
                "settings": {"type": "object", "properties": {"password": {"type": "string"}}},
            },
        },
        "metadata": {"type": "object", "description": "At most 10 KB. Keys must not begin with everyrun:."},
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
        parse.NDJSON: {
            "schema": {"type": "string", "description": "One row per line, like the rows in `inputs` of JSON."}
        },
        parse.CSV: {"schema": {"type": "string", "description": (Columns.row.__doc__ or "").strip()}},
    },
}


_SYNCED = {
    "type": "object",
    "required": ["version", "was"],
    "properties": {"version": {"type": "string"}, "was": {"type": ["string", "null"]}},
    "description": "The version of the object (an ETag, or size and time), and the version that was submitted last.",
}
_SYNC_ROW = {
    **_ROW,
    "required": ["id", "file", "synced"],
    "properties": {**_ROW["properties"], "synced": _SYNCED},  # type: ignore[dict-item]
}
SYNC_BODY = {
    "required": True,
    "content": {
        parse.JSON: {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "properties": {"inputs": {"type": "array", "minItems": 1, "items": _SYNC_ROW}},
            }
        },
        parse.NDJSON: {
            "schema": {"type": "string", "description": "One row per line, like the rows in `inputs` of JSON."}
        },
    },
}

#: The codes with which a route that takes rows answers 422, for the OpenAPI document.
UPLOAD_REFUSED = (
    "BAD_ROWS: rows are wrong; `rows` lists the first. NO_ROWS: the upload has no rows. UNREADABLE: the body does not "
    "match its content-type. INVALID_REQUEST: a parameter is wrong; `field` names it. UNKNOWN_WORKFLOW: Extend has no "
    "such workflow; `did_you_mean` lists similar ids. UNKNOWN_VERSION: the workflow has no such version; "
    "`did_you_mean` lists its versions. No row was accepted."
)

#: Maximum number of uploads at the same time. Each needs a connection of the pool (submission/app.py). The other
#: connections are left to the API, the dispatcher and the resolver.
_MAX_UPLOADS = 4
#: Number of bytes that are written or unpacked at a time.
_PART = 1 << 20


class UploadsFullError(Unavailable):
    """As many uploads are in progress as are allowed; the text says what to do."""

    code = "BUSY"
    retry_after = 10


class Uploads:
    """Count the uploads in progress.

    Each takes up disk space while its body arrives, and then also a Postgres connection.
    """

    def __init__(self) -> None:
        self._sizes: dict[object, int] = {}

    def __len__(self) -> int:
        """Return the number of uploads in progress."""
        return len(self._sizes)

    @property
    def size(self) -> int:
        """The number of bytes on disk of all uploads in progress."""
        return sum(self._sizes.values())

    @contextmanager
    def reserve(self) -> Iterator[Callable[[int], None]]:
        """Count one upload while the block runs.

        Yield a function that the block must call with the upload's current size.

        Raises UploadsFullError if there are too many uploads.
        """
        if len(self) >= _MAX_UPLOADS:
            raise UploadsFullError(f"{_MAX_UPLOADS} uploads are in progress, which is the maximum; try again later")
        upload = object()
        self._sizes[upload] = 0
        try:
            yield lambda size: self._sizes.update({upload: size})
        finally:
            del self._sizes[upload]


class BodyTooLargeError(Exception):
    """The unpacked body exceeds the size limit."""


class _PlainWriter:
    """Write a body to a file. The body may have at most ``max_bytes``."""

    def __init__(self, file: IO[bytes], max_bytes: int) -> None:
        self._file = file
        self._left = max_bytes

    def write(self, part: bytes) -> None:
        """Write a part. Raises BodyTooLargeError."""
        self._left -= len(part)
        if self._left < 0:
            raise BodyTooLargeError
        self._file.write(part)

    def finish(self) -> None:
        """Do what is left to do after the last part: nothing for a plain body."""


class _GzipWriter(_PlainWriter):
    """Unpack a gzip body to a file.

    One megabyte is unpacked at a time, so that a small body that unpacks to a huge one cannot fill the memory.
    """

    def __init__(self, file: IO[bytes], max_bytes: int) -> None:
        super().__init__(file, max_bytes)
        self._unpacker = zlib.decompressobj(wbits=31)
        self._begun = False

    def write(self, part: bytes) -> None:
        """Unpack and write a part.

        A body may consist of several gzip members. Raises BodyTooLargeError and UploadError.
        """
        try:
            while part:
                if self._unpacker.eof:
                    self._unpacker = zlib.decompressobj(wbits=31)
                self._begun = True
                super().write(self._unpacker.decompress(part, _PART))
                part = self._unpacker.unconsumed_tail or self._unpacker.unused_data
        except zlib.error as error:
            raise UploadError(f"the body is not valid gzip, as Content-Encoding says: {error}") from None

    def finish(self) -> None:
        """Unpack and write what is left.

        Raises BodyTooLargeError. Raises UploadError if the body is invalid or ends too early.
        """
        while self._begun and not self._unpacker.eof:
            try:
                rest = self._unpacker.decompress(self._unpacker.unconsumed_tail, _PART)
            except zlib.error as error:
                raise UploadError(f"the body is not valid gzip, as Content-Encoding says: {error}") from None
            if not rest and not self._unpacker.eof:
                raise UploadError("the gzip body ends too early")
            super().write(rest)


async def receive(
    body: AsyncIterator[bytes], max_bytes: int, gzip: bool, on_growth: Callable[[int], None] = lambda _size: None
) -> IO[bytes]:
    """Write the whole body to a temporary file, and return that file.

    ``on_growth`` is called with the size of the file from time to time. The file has no name, so it disappears with the
    process. Raises BodyTooLargeError, UploadError and the errors of reading the body.
    """
    file = parse.spool()
    try:
        writer = _GzipWriter(file, max_bytes) if gzip else _PlainWriter(file, max_bytes)
        buffered, size = [], 0
        async for part in body:
            buffered.append(part)
            size += len(part)
            if size >= _PART:
                await asyncio.to_thread(writer.write, b"".join(buffered))
                on_growth(file.tell())
                buffered, size = [], 0
        await asyncio.to_thread(writer.write, b"".join(buffered))
        await asyncio.to_thread(writer.finish)
        on_growth(file.tell())
    except BaseException:
        file.close()
        raise
    return file


class BodyFormat(NamedTuple):
    """The format of a body, as the headers of its request name it."""

    content_type: str
    charset: str | None
    gzip: bool


def body_format(request: Request) -> BodyFormat:
    """Return the format of the body. Raises ApiError (415) if it is not supported."""
    # Python's mail parser handles the quotes and parameters that the header may have.
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
        message = f"Content-Encoding {coding!r} is not supported: send the body uncompressed, or with gzip"
        raise ApiError(415, "UNSUPPORTED_ENCODING", message)
    return BodyFormat(content_type, charset if isinstance(charset, str) else None, coding.endswith("gzip"))


@asynccontextmanager
async def uploaded_rows(
    request: Request, uploads: Uploads, max_bytes: int
) -> AsyncIterator[AsyncIterator[parse.RowGroup]]:
    """Receive the whole body of a request into a file, and give its rows to the block.

    The body may have at most ``max_bytes`` when it is unpacked. No transaction is open while the body arrives, because
    that can take long. Raises ApiError and UploadsFullError.
    """
    format = body_format(request)
    with uploads.reserve() as on_growth:
        try:
            file = await receive(request.stream(), max_bytes, format.gzip, on_growth)
        except BodyTooLargeError:
            what = "unpacked upload" if format.gzip else "upload"
            raise ApiError(413, "TOO_LARGE", f"the {what} is larger than {max_bytes} bytes; split it") from None
        except OSError as error:
            message = f"no room for the upload in the folder for temporary files ({error.strerror}); see TMPDIR"
            raise ApiError(507, "NO_ROOM", message) from None
        except UploadError as error:
            raise ApiError(422, "UNREADABLE", str(error)) from None
        with file:
            try:
                options = parse.Options(format.charset)
                yield parse.row_groups(parse.RowReader(format.content_type, file, options))
            except EncodingError as error:
                remedy = "" if error.named else ": content-type: text/csv; charset=windows-1252"
                raise ApiError(422, "UNREADABLE", f"{error}{remedy}") from None
            except UploadError as error:
                raise ApiError(422, "UNREADABLE", str(error)) from None
            except BadRowsError as error:
                raise bad_rows_error(error) from None


def bad_rows_error(error: BadRowsError) -> ApiError:
    """Return the answer 422 that lists the first bad rows and what is wrong with each."""
    if not error.count:
        return ApiError(422, "NO_ROWS", "the upload has no rows, so nothing was accepted", bad_rows=0, rows=[])
    listed = f"; the first {len(error.rows)} are listed" if error.count > len(error.rows) else ""
    message = f"{error}, so nothing was accepted{listed}"
    rows = [msgspec.to_builtins(row) for row in error.rows]
    return ApiError(422, "BAD_ROWS", message, bad_rows=error.count, rows=rows)


def refuse_nul(field: str, value: str) -> None:
    """Raise ApiError (422) if the value has a NUL character, which Postgres cannot store."""
    if "\x00" in value:
        raise ApiError(422, "INVALID_REQUEST", f"{field}: has a NUL character", field=field)


async def check_workflow(workflows: Workflows | None, workflow_id: str, version: str | None) -> str | None:
    """Return None if Extend has the workflow and its version, else why Extend could not be asked about them.

    Without ``workflows`` nothing is checked. Raises ApiError if Extend does not have them.
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
