"""Check requests as Extend does. A wrong request raises an ApiProblem with Extend's status and code. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from everyrun.emulator.runs import WORKFLOW_EVENTS

_encode = msgspec.json.encode
#: A function that takes a file's id and returns the file's name, or None if there is no such file.
NameOf = Callable[[str], str | None]

#: Maximum number of inputs in a batch (SDK 1.20.0, workflow_runs/client.py create_batch).
MAX_INPUTS = 1000
#: Maximum size of metadata, 10 KB (SDK 1.20.0, RunMetadata). Extend does not document how it counts the bytes; the
#: emulator counts those of compact UTF-8 JSON.
MAX_METADATA = 10_240
_FILE_FIELDS = {"url": {"url", "name", "settings"}, "id": {"id"}, "text": {"text", "name"}}
_TAGS = "extend:usage_tags"
_URL = r"https?://[^/\s]+\S*\Z"
_RUNS = ("parse_run", "edit_run", "form_detection_run", "extract_run", "classify_run", "split_run")
_BATCHES = ("batch_processor_run", "batch_parse_run")
_CHANGES = ("created", "updated", "deleted", "draft.updated", "version.published")
#: Events that an endpoint can enable without a subscription (SDK 1.20.0, types/webhook_endpoint_event_type.py).
GLOBAL_EVENTS = frozenset(
    [f"{name}.{end}" for name in _RUNS + _BATCHES for end in ("processed", "failed")]
    + [f"{name}.{change}" for name in ("extractor", "classifier", "splitter") for change in _CHANGES]
    + [f"workflow.{change}" for change in ("created", "deployed", "deleted")]
)


class ApiProblem(Exception):  # noqa: N818
    """An error response as Extend sends it: HTTP status, code and message (SDK 1.20.0, types/api_error.py)."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}


def invalid(message: str) -> ApiProblem:
    """Return a 400 INVALID_REQUEST."""
    return ApiProblem(400, "INVALID_REQUEST", message)


def not_found(what: str) -> ApiProblem:
    """Return a 404 NOT_FOUND."""
    return ApiProblem(404, "NOT_FOUND", f"{what} not found")


def clean_metadata(field: str, value: Any) -> dict[str, Any]:
    """Return metadata as Extend stores it: usage tags keep only letters, digits, ``-`` and ``_``.

    Raises ApiProblem.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(f"{field}: must be an object")
    if len(_encode(value)) > MAX_METADATA:
        raise invalid(f"{field}: must be at most 10 KB")
    if _TAGS in value:
        tags = value[_TAGS]
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise invalid(f"{field}.{_TAGS}: must be a list of strings")
        return {**value, _TAGS: [re.sub(r"[^A-Za-z0-9_-]", "", tag) for tag in tags]}
    return value


def read_file(field: str, value: Any, name_of: NameOf) -> dict[str, Any]:
    """Return the file of an input. Drop keys that Extend does not know. If the file was given by id, add its name.

    A file has either a url, an id or a text (SDK 1.20.0, workflow_runs/types). Raises ApiProblem if the file is wrong,
    or if its id belongs to no file or to a deleted file (docs.extend.ai of 2025-04-21).
    """
    if not isinstance(value, dict):
        raise invalid(f"{field}: is required")
    kinds = [kind for kind in _FILE_FIELDS if kind in value]
    if len(kinds) != 1:
        raise invalid(f"{field}: exactly one of url, id, text")
    (kind,) = kinds
    if not isinstance(value[kind], str) or not value[kind]:
        raise invalid(f"{field}.{kind}: must be a string")
    if not isinstance(value.get("name", ""), str):
        raise invalid(f"{field}.name: must be a string")
    if not isinstance(value.get("settings", {}), dict):
        raise invalid(f"{field}.settings: must be an object")
    if kind == "url" and not re.match(_URL, value["url"]):
        raise invalid(f"{field}.url: must be a URL")
    if kind == "id":
        name = name_of(value["id"])
        if name is None:
            raise invalid(f"{field}.id: there is no file {value['id']}")
        return {"id": value["id"], "name": name}
    return {key: value[key] for key in value if key in _FILE_FIELDS[kind]}


def read_package(value: Any, name_of: NameOf) -> dict[str, Any]:
    """Return a checked package of files (SDK 1.20.0, requests/workflow_run_package.py).

    Raises ApiProblem if it does not have 2 to 50 files, if one of them is a text, or if one occurs twice.
    """
    files = value.get("files") if isinstance(value, dict) else None
    if not isinstance(files, list) or not 2 <= len(files) <= 50:
        raise invalid("package.files: 2 to 50 files")
    checked = [read_file(f"package.files[{index}]", file, name_of) for index, file in enumerate(files)]
    sources = [("id", file["id"]) if "id" in file else ("url", file.get("url")) for file in checked]
    if any("text" in file for file in checked) or len(set(sources)) < len(sources):
        raise invalid("package.files: every file must be a url or an id, and none may occur twice")
    return {"package": checked}


def read_priority(value: Any, default: int) -> int:
    """Return the priority, or the default if there is none. Raises ApiProblem if it is not from 1 to 100."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100:
        raise invalid("priority: must be an integer from 1 to 100")
    return value


def check_secrets(field: str, value: Any) -> None:
    """Check that the secrets of a run, if it has any, are an object. Raises ApiProblem if they are not."""
    if value is not None and not isinstance(value, dict):
        raise invalid(f"{field}: must be an object")


def read_reference(body: Any) -> tuple[str, str | None]:
    """Return workflow.id and workflow.version of a request that creates a run or a batch. Raises ApiProblem."""
    reference = body.get("workflow") if isinstance(body, dict) else None
    if not isinstance(reference, dict) or not isinstance(reference.get("id"), str):
        raise invalid("workflow.id: is required")
    version = reference.get("version")
    if version is not None and not isinstance(version, str):
        raise invalid("workflow.version: must be a string")
    return reference["id"], version


def read_inputs(body: dict[str, Any], name_of: NameOf) -> list[tuple[bytes, bytes]]:
    """Return the file and metadata of each input of a batch, as JSON. Raises ApiProblem for the first wrong input."""
    inputs = body.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise invalid("inputs: at least 1 item")
    if len(inputs) > MAX_INPUTS:
        raise invalid(f"inputs: at most {MAX_INPUTS} items")
    checked = []
    for index, value in enumerate(inputs):
        if not isinstance(value, dict):
            raise invalid(f"inputs[{index}]: must be an object")
        file = read_file(f"inputs[{index}].file", value.get("file"), name_of)
        metadata = clean_metadata(f"inputs[{index}].metadata", value.get("metadata"))
        check_secrets(f"inputs[{index}].secrets", value.get("secrets"))
        checked.append((_encode(file), _encode(metadata)))
    return checked


def check_events(field: str, value: Any, *, workflow: bool) -> list[str]:
    """Return checked names of events. Raises ApiProblem.

    If ``workflow`` is true, as for a subscription to a workflow, only workflow_run.* events are allowed. Otherwise only
    GLOBAL_EVENTS are allowed.
    """
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise invalid(f"{field}: must be a list of event types")
    for name in value:
        if name not in (WORKFLOW_EVENTS if workflow else GLOBAL_EVENTS):
            raise invalid(f"{field}: {name} is not allowed here")
    return value


def check_options(value: Any) -> None:
    """Check the advancedOptions of an endpoint: extra headers, and the form of the payload. Raises ApiProblem."""
    field = "advancedOptions"
    if not isinstance(value, dict) or set(value) - {"headers", "payload"}:
        raise invalid(f"{field}: an object of headers and payload")
    headers, payload = value.get("headers") or {}, value.get("payload") or {}
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise invalid(f"{field}.headers: must be an object of strings")
    if not isinstance(payload, dict) or set(payload) - {"format", "urlThresholdBytes"}:
        raise invalid(f"{field}.payload: an object of format and urlThresholdBytes")
    if payload.get("format", "json") not in ("json", "url"):
        raise invalid(f"{field}.payload.format: json or url")
    threshold = payload.get("urlThresholdBytes")
    if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, int) or threshold < 0):
        raise invalid(f"{field}.payload.urlThresholdBytes: must be a number of bytes")


def check_endpoint(body: Any, *, create: bool) -> dict[str, Any]:
    """Return the checked body of a request that creates or changes a webhook endpoint. Raises ApiProblem.

    If ``create`` is true, the body must contain the keys that a new endpoint needs (docs.extend.ai,
    create-webhook-endpoint).
    """
    if not isinstance(body, dict):
        raise invalid("the body must be an object")
    for key in body:
        if key not in ("url", "name", "enabledEvents", "apiVersion", "status", "advancedOptions"):
            raise invalid(f"{key}: unknown key")
    for key in ("url", "name", "enabledEvents", "apiVersion") if create else ():
        if key not in body:
            raise invalid(f"{key}: is required")
    if "url" in body and not (isinstance(body["url"], str) and re.match(_URL, body["url"])):
        raise invalid("url: must be a URL")
    if "name" in body and (not isinstance(body["name"], str) or not body["name"]):
        raise invalid("name: must not be empty")
    if "enabledEvents" in body:
        check_events("enabledEvents", body["enabledEvents"], workflow=False)
    if body.get("apiVersion", "2026-02-09") != "2026-02-09":
        raise invalid("apiVersion: must be 2026-02-09")
    if body.get("status", "enabled") not in ("enabled", "disabled"):
        raise invalid("status: enabled or disabled")
    if body.get("advancedOptions") is not None:
        check_options(body["advancedOptions"])
    return body
