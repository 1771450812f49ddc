"""Check the rows of a submission. The command line checks them with the same rules in a dry run. Pure.

This module has over 300 lines, because the quick check of common rows and the full check must agree, so they are
together.
"""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import urlsplit, urlunsplit

import msgspec
from msgspec import UNSET, Meta, UnsetType

from everyrun import objects
from everyrun.extend import reserved

_encode = msgspec.json.Encoder().encode

#: The fields of each kind of file, in the order in which they are stored (Extend's SDK 1.20.0, workflow_runs/types:
#: FileFromUrl, FileFromId, FileFromText).
#: ``object`` is the address of an object in a bucket, from which Everyrun makes a FileFromUrl when it sends the input.
FILE_FIELDS = {
    "url": ("url", "name", "settings"),
    "id": ("id",),
    "text": ("text", "name"),
    "object": ("object", "etag", "name", "settings"),
}
#: Number of bytes to allow for the reserved key within the 10 KB of metadata. The ids of the submission and of the
#: input, which the key contains, come on top. The number is enough even for the suffixes that the id of a chunk gets
#: when it is cut repeatedly.
_RESERVED_ROOM = 240


#: ``everyrun results`` appends this to a link whose query string was not kept. Such a link cannot be opened, so it is
#: refused if it is submitted again.
REDACTED = "#everyrun-redacted"
_REPLACE = "its query string or password was not kept: give a new link, with the password if it has one"


class BadRow(msgspec.Struct, frozen=True):
    """A bad row: its number from 1, its id if it has one, the bad field, and what is wrong with that field.

    ``line`` is the line of the file on which the row begins, if that is known.
    """

    row: int
    id: str | None
    field: str
    reason: str
    line: int | None = None


class UnreadableRow(msgspec.Struct, frozen=True):
    """A row that could not be read, and the reason. ``field`` and ``id`` are set if they are known."""

    reason: str
    field: str = ""
    id: str | None = None


class GoodRow(msgspec.Struct, frozen=True):
    """An input as the queue stores it.

    ``file`` and ``metadata`` are JSON text. ``size`` is the maximum number of bytes that the input takes up in a batch.
    """

    position: int
    external_id: str
    file: bytes
    metadata: bytes
    size: int


class _QuickFile(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    url: str
    name: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET


class QuickRow(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A row in the most common form: its file is a URL.

    Decoding a row into this type already checks most of the rules.
    """

    file: _QuickFile
    id: Annotated[str, Meta(min_length=1, max_length=reserved.EXTERNAL_ID_MAX)] | None = None
    metadata: dict[str, Any] | None = None


#: Matches a simple URL, which is valid without any further check.
_PLAIN_URL = re.compile(r"https?://[A-Za-z0-9.-]+(?:/[!-~]*)?").fullmatch


#: Matches the JSON text of a file whose URL has a query string or a fragment, which is the common form of a signed
#: link.
_SIGNED_URL = re.compile(
    rb'(\{"url":"https?://[A-Za-z0-9.-]+(?::\d+)?/[^"\\?#@]*)[?#][^"\\]+("(?:,"name":"[^"\\]*")?)\}'
).fullmatch


class _BadFieldError(Exception):
    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


def check_row(row: int, given: Any, submission_id: str, max_bytes: int, line: int | None = None) -> GoodRow | BadRow:
    """Return the input of row number ``row`` (from 1), or what is wrong with the row.

    ``given`` is the decoded value of the row, or UnreadableRow. A QuickRow gives the same result as the same row
    decoded to a dictionary. ``max_bytes`` is the maximum size of an input. ``line`` goes into a BadRow.
    """
    if type(given) is QuickRow:
        good = _quick(row, given, submission_id, max_bytes)
        if good is not None:
            return good
        given = msgspec.to_builtins(given)
    if isinstance(given, UnreadableRow):
        return BadRow(row, _shown_id(given.id), given.field, given.reason, line)
    identifier = given.get("id") if isinstance(given, dict) else None
    try:
        if not isinstance(given, dict):
            raise _BadFieldError("", "a row is an object with id, file and metadata")
        unknown = sorted(set(given) - {"id", "file", "metadata"})
        if "secrets" in unknown:
            raise _BadFieldError("secrets", "secrets are not supported yet; remove them")
        if unknown:
            raise _BadFieldError(unknown[0], "unknown field; a row has id, file and metadata")
        external_id = _external_id(identifier, row)
        file = _storable("file", _file(given.get("file")))
        metadata = _storable("metadata", _metadata(given.get("metadata"), submission_id, external_id))
        size = _size(file, metadata, submission_id, external_id)
        if size > max_bytes:
            raise _BadFieldError(
                "file", f"the input is {size} bytes; the maximum is {max_bytes}. Submit it as a URL, or upload the file"
            )
        return GoodRow(row, external_id, file, metadata, size)
    except _BadFieldError as error:
        return BadRow(row, _shown_id(identifier), error.field, str(error), line)


def duplicate_id(row: int, external_id: str, first: int, line: int | None = None) -> BadRow:
    """Return the BadRow for a row that has the same id as the earlier row ``first``."""
    reason = (
        f"is also the id of row {first}; ids must be unique in a submission (a row without an id gets its row number)"
    )
    return BadRow(row, external_id, "id", reason, line)


def _shown_id(given: Any) -> str | None:
    return given[: reserved.EXTERNAL_ID_MAX] if isinstance(given, str) and given else None


def _quick(row: int, given: QuickRow, submission_id: str, max_bytes: int) -> GoodRow | None:
    """Return the input if a few quick tests find nothing wrong, or None if the row needs the full check."""
    external_id = str(row) if given.id is None else given.id
    url = given.file.url
    if not _PLAIN_URL(url) or url.endswith(REDACTED) or not external_id.isprintable():
        return None
    try:
        file, metadata = _encode(given.file), _encode(given.metadata or {})
    except (ValueError, OverflowError, RecursionError):
        return None
    if b"\\u0000" in file or b"\\u0000" in metadata or b'"everyrun:' in metadata:
        return None
    size = _size(file, metadata, submission_id, external_id)
    if size > max_bytes or _metadata_size(metadata, submission_id, external_id) > reserved.METADATA_MAX_BYTES:
        return None
    return GoodRow(row, external_id, file, metadata, size)


def _size(file: bytes, metadata: bytes, submission_id: str, external_id: str) -> int:
    return size_in_batch(len(file) + len(metadata), len(submission_id), len(external_id.encode()))


def size_in_batch(content_bytes: int, submission_id_bytes: int, external_id_bytes: int) -> int:
    """Return the maximum number of bytes that an input takes up in a batch, from the sizes of its parts.

    ``content_bytes`` is the size of the file and the metadata. In a batch, an input also carries the reserved key. Each
    of the two ids occurs up to twice in what is added. 440 bytes are allowed for everything else that is added.
    """
    return content_bytes + 2 * (submission_id_bytes + external_id_bytes) + 440


def _metadata_size(metadata: bytes, submission_id: str, external_id: str) -> int:
    """Return the size of the metadata with the reserved key, in bytes, as Extend counts it."""
    return len(metadata) + _RESERVED_ROOM + 2 * len(submission_id) + len(external_id.encode())


def _external_id(given: Any, row: int) -> str:
    if given is None:
        return str(row)
    if not isinstance(given, str):
        raise _BadFieldError("id", f"must be text, not {_kind(given)}")
    if not 1 <= len(given) <= reserved.EXTERNAL_ID_MAX:
        raise _BadFieldError("id", f"must have 1 to {reserved.EXTERNAL_ID_MAX} characters; this has {len(given)}")
    if not given.isprintable():
        raise _BadFieldError("id", "has a character that cannot be printed")
    return given


def _file(given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise _BadFieldError("file", "is required: an object with url, id, text or object")
    if given.get("redacted"):
        raise _BadFieldError("file.redacted", _REPLACE)
    url = given.get("url")
    if isinstance(url, str) and objects.is_address(url) and "object" not in given:
        # A CSV has one column for links and for objects.
        given = {"object": url} | {field: value for field, value in given.items() if field != "url"}
    kinds = sorted(kind for kind in FILE_FIELDS if kind in given)
    if len(kinds) != 1:
        raise _BadFieldError(
            "file", "needs exactly one of url, id, text and object" + (f"; it has {', '.join(kinds)}" if kinds else "")
        )
    (kind,) = kinds
    for field, value in given.items():
        if field not in FILE_FIELDS[kind]:
            raise _BadFieldError(
                f"file.{field}", f"unknown for a file with {kind}; allowed: {', '.join(sorted(FILE_FIELDS[kind]))}"
            )
        if field == "settings":
            if (
                not isinstance(value, dict)
                or set(value) - {"password"}
                or not isinstance(value.get("password", ""), str)
            ):
                raise _BadFieldError("file.settings", 'must be an object like {"password": "..."}')
        elif not isinstance(value, str) or not value:
            raise _BadFieldError(f"file.{field}", f"must be non-empty text, not {_kind(value)}")
    if kind == "url":
        _check_url(given["url"])
    elif kind == "object":
        try:
            objects.parse(given["object"])
        except objects.ObjectAddressError as error:
            raise _BadFieldError("file.object", str(error)) from None
    # The fields are in a fixed order, so that equal files give equal text.
    return {field: given[field] for field in FILE_FIELDS[kind] if field in given}


def _check_url(url: str) -> None:
    if url.endswith(REDACTED):
        raise _BadFieldError("file.url", f"ends in {REDACTED}: {_REPLACE}")
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        right = False
    # isprintable() refuses all white space except the plain space.
    if not right or not url.isprintable() or " " in url:
        raise _BadFieldError("file.url", "is not an http or https URL; spaces must be written %20")


def _metadata(given: Any, submission_id: str, external_id: str) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise _BadFieldError("metadata", f"must be an object, not {_kind(given)}")
    for key in given:
        if key.startswith(reserved.PREFIX):
            raise _BadFieldError(
                f"metadata.{key}"[:200], f"keys that begin with {reserved.PREFIX} are reserved for Everyrun"
            )
    size = _metadata_size(_storable("metadata", given), submission_id, external_id)
    if size > reserved.METADATA_MAX_BYTES:
        raise _BadFieldError(
            "metadata", f"is {size} bytes with Everyrun's key; Extend accepts {reserved.METADATA_MAX_BYTES}"
        )
    return given


def _storable(field: str, value: Any) -> bytes:
    try:
        text: bytes = _encode(value)
    except (UnicodeEncodeError, msgspec.EncodeError, ValueError, OverflowError, RecursionError):
        raise _BadFieldError(field, "has a value that JSON or UTF-8 cannot hold") from None
    if b"\\u0000" in text and b"\\u0000" in text.replace(b"\\\\", b""):
        raise _BadFieldError(field, "has a NUL character, which cannot be stored")
    return text


def _kind(value: Any) -> str:
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    if isinstance(value, str):
        return "text" if value else "empty text"
    return "null" if value is None else names.get(type(value), type(value).__name__)


def redact_file(file: dict[str, Any]) -> dict[str, Any]:
    """Return the file as the log and the tables show it: without its password, and without secrets in its URL.

    The query, the fragment and the user are removed from the URL. If something was removed, ``redacted`` is true in the
    returned file, which can then no longer be submitted. The address of an object is no secret and stays as it is.
    """
    shown = {key: value for key, value in file.items() if key != "settings"}
    removed = "settings" in file
    if "url" in shown:
        parts = urlsplit(shown["url"])
        plain = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
        removed = removed or plain != shown["url"]
        shown["url"] = plain
    return {**shown, "redacted": True} if removed else shown


def redacted_json(file: bytes) -> bytes:
    """Return a file's JSON text as the log shows it, for hashing. Does the same as ``redact_file``, but faster."""
    if b"?" not in file and b"#" not in file and b"@" not in file and b'"settings"' not in file:
        return file
    signed = _SIGNED_URL(file)
    if signed is not None:
        return b'%s%s,"redacted":true}' % signed.groups()
    return _encode(redact_file(msgspec.json.decode(file)))
