"""Read the body of ``POST /workflow_runs/batch`` (SDK 1.20.0, workflow_runs/client.py create_batch). Pure.

Like Extend, ignore fields that Extend does not know. Refuse what Everyrun cannot keep exactly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from everyrun.submission.dropin.extend_form import Problem
from everyrun.submission.intake.accept import BadRowsError
from everyrun.submission.intake.json_text import decode_row
from everyrun.submission.intake.parse import RowGroup
from everyrun.submission.intake.rows import FILE_FIELDS, QuickRow, UnreadableRow
from everyrun.submission.intake.text import UploadError

#: Extend accepts this many inputs in a batch (SDK 1.20.0, workflow_runs/client.py create_batch).
MAX_INPUTS = 1000
#: Header with which a caller allows more inputs in one batch, and the most that it can allow.
MORE_INPUTS = "x-everyrun-max-inputs"
MOST_INPUTS = 100_000
#: Priority of a batch that names none (same source).
_PRIORITY = 90
#: Maximum length of an id or a version.
_ID_MAX = 255


class Batch(NamedTuple):
    """A checked call. ``rows`` is one group with all its inputs, which are not checked one by one yet."""

    workflow_id: str
    workflow_version: str | None
    priority: int
    rows: RowGroup


class _Body(msgspec.Struct):
    workflow: msgspec.Raw = msgspec.Raw(b"null")
    inputs: msgspec.Raw = msgspec.Raw(b"null")
    priority: msgspec.Raw = msgspec.Raw(b"null")


_body = msgspec.json.Decoder(_Body)
_raws = msgspec.json.Decoder(list[msgspec.Raw])


def max_inputs(header: str | None) -> int:
    """Return the maximum number of inputs of a batch, from the header MORE_INPUTS. Raises Problem if it is wrong."""
    if header is None:
        return MAX_INPUTS
    if not (header.isascii() and header.isdigit() and 1 <= int(header[:7]) <= MOST_INPUTS):
        raise Problem(400, f"{MORE_INPUTS}: must be an integer from 1 to {MOST_INPUTS}")
    return int(header)


def read_batch(body: bytes, most: int) -> Batch:
    """Return the batch in a body. Raises Problem if the body is wrong, except for the content of its inputs."""
    try:
        body.decode()  # msgspec does not validate the UTF-8 of what it passes through as Raw.
        given = _body.decode(body)
        inputs = _raws.decode(given.inputs) if bytes(given.inputs).startswith(b"[") else None
        workflow, priority = msgspec.json.decode(given.workflow), msgspec.json.decode(given.priority)
    except UnicodeDecodeError:
        raise Problem(400, "the body is not UTF-8 text") from None
    except msgspec.DecodeError as error:
        raise Problem(400, f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise Problem(400, "the body is not valid JSON: it is nested too deeply") from None
    workflow_id, version = _workflow(workflow)
    if inputs is None:
        raise Problem(400, "inputs: must be a list")
    if not 1 <= len(inputs) <= most:
        more = "" if most > MAX_INPUTS else f". To send more in one batch, set the header {MORE_INPUTS}"
        raise Problem(400, f"inputs: must have 1 to {most} items; this has {len(inputs)}{more}")
    return Batch(
        workflow_id, version, _checked_priority(priority), [(n, _row(bytes(raw))) for n, raw in enumerate(inputs, 1)]
    )


def bad_inputs(error: BadRowsError) -> Problem:
    """Return the answer that names the first bad input, counted from 0 as in Extend's messages, and their number."""
    first = error.rows[0]
    field = f".{first.field}" if first.field else ""
    more = "" if error.count == 1 else f" ({error.count} inputs are wrong)"
    return Problem(400, f"inputs[{first.row - 1}]{field}: {first.reason}{more}")


def _workflow(given: Any) -> tuple[str, str | None]:
    if not isinstance(given, dict):
        raise Problem(400, "workflow: must be an object with an id")
    version = given.get("version")
    for field, value in (("id", given.get("id")), ("version", "1" if version is None else version)):
        if not isinstance(value, str) or not 1 <= len(value) <= _ID_MAX or not value.isprintable():
            raise Problem(400, f"workflow.{field}: must be text of 1 to {_ID_MAX} printable characters")
    return given["id"], version


def _checked_priority(given: Any) -> int:
    if given is None:
        return _PRIORITY
    if type(given) is not int or not 1 <= given <= 100:
        raise Problem(400, "priority: must be an integer from 1 to 100")
    return given


def _row(raw: bytes) -> Any:
    """Return the row of an input: only its file and its metadata, as Extend ignores other fields."""
    try:
        given = decode_row(raw, 1)
    except UploadError as error:
        return UnreadableRow(str(error))
    if type(given) is QuickRow:
        return given if given.id is None else msgspec.structs.replace(given, id=None)
    if not isinstance(given, dict):
        return given
    kept = {name: given[name] for name in ("file", "metadata", "secrets") if given.get(name) is not None}
    if isinstance(kept.get("file"), dict):
        kept["file"] = _file(kept["file"])
    return kept


def _file(given: dict[str, Any]) -> dict[str, Any]:
    known = {name for fields in FILE_FIELDS.values() for name in fields}
    return {name: value for name, value in given.items() if name in known and value is not None}
