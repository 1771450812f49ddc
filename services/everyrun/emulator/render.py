"""Render Extend's objects as the types in its SDK require them: a field without a value is null, not absent."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

import msgspec

from everyrun.emulator.runs import FAILURES, WITH_STEPS, Run

_decode = msgspec.json.decode

_GOODS = (
    "Copy paper A4",
    "Toner, black",
    "Desk lamp",
    "Office chair",
    "Cable, 2 m",
    "Monitor 27 in",
    "Keyboard",
    "Labels",
)
_TYPES = {
    "pdf": "PDF",
    "csv": "CSV",
    **dict.fromkeys(("png", "jpg", "jpeg", "tif", "tiff", "gif", "bmp", "webp", "heic", "heif"), "IMG"),
    **dict.fromkeys(("txt", "md"), "TXT"),
    **dict.fromkeys(("docx", "doc"), "DOCX"),
    **dict.fromkeys(("xlsx", "xls", "xltx", "xltm"), "EXCEL"),
    "xml": "XML",
    "html": "HTML",
}
#: Number of characters in a run's id after the prefix ``workflow_run_``.
_RUN_KEY_LENGTH = 24
#: One run in this many has a large result.
_LARGE_EVERY = 100


def time(moment: float | None) -> str | None:
    """Return a time (Unix seconds) in the format that Extend uses, or None for None."""
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def workflow(workflow_id: str, created_at: float) -> dict[str, Any]:
    """Return a WorkflowSummary."""
    at = time(created_at)
    return {
        "object": "workflow",
        "id": workflow_id,
        "name": "Invoices",
        "createdAt": at,
        "updatedAt": at,
        "createdBy": None,
    }


def version(workflow_id: str, name: str, created_at: float) -> dict[str, Any]:
    """Return a WorkflowVersionSummary."""
    return {
        "object": "workflow_version",
        "id": version_id(workflow_id, name),
        "version": name,
        "name": None,
        "createdAt": time(created_at),
        "createdBy": None,
    }


def version_id(workflow_id: str, name: str) -> str:
    """Return the id of a version of a workflow."""
    return f"workflow_version_{workflow_id.removeprefix('workflow_')}_{name}"


def version_with_steps(workflow_id: str, name: str, created_at: float) -> dict[str, Any]:
    """Return a WorkflowVersion. Its steps are a trigger, the two steps that every run has, and a webhook response."""
    schema = {"type": "object", "properties": {"invoice_number": {"type": "string"}, "total": {"type": "number"}}}
    steps = [
        {"type": "TRIGGER", "name": "trigger", "next": [{"step": "parse"}]},
        {"type": "PARSE", "name": "parse", "config": {"parseConfig": {"target": "markdown"}},
         "next": [{"step": "extract"}]},
        {"type": "EXTRACT", "name": "extract", "config": {"extractorConfig": {"schema": schema}},
         "next": [{"step": "webhook_response"}]},
        {"type": "WEBHOOK_RESPONSE", "name": "webhook_response"},
    ]  # fmt: skip
    return {**version(workflow_id, name, created_at), "steps": steps}


def file_summary(identifier: str, name: str, created_at: float) -> dict[str, Any]:
    """Return a FileSummary; only PDF and DOCX files have a page count (SDK 1.20.0, types/file_metadata.py)."""
    at = time(created_at)
    kind = _TYPES.get(name.rpartition(".")[2].lower())
    return {
        "object": "file",
        "id": identifier,
        "name": name,
        "type": kind,
        "parentFileId": None,
        "metadata": {"pageCount": 1} if kind in ("PDF", "DOCX") else {},
        "createdAt": at,
        "updatedAt": at,
    }


def file(summary: dict[str, Any], contents: dict[str, Any] | None) -> dict[str, Any]:
    """Return a File. Its type is left out if the type could not be determined (SDK 1.20.0, types/file.py)."""
    shown = {key: value for key, value in summary.items() if key != "type" or value is not None}
    return {**shown, "contents": contents}


def files_made_for(run: Run) -> dict[int, str]:
    """Return the ids of the run's files that came as a URL or as text, by the file's index in the run.

    Extend makes these files for the run. The others were uploaded before.
    """
    given = _decode(run.file)
    key = run.id.removeprefix("workflow_run_")
    each = enumerate(given.get("package", [given]))
    return {index: f"file_{key}{index or ''}" for index, one in each if "id" not in one}


def run_of_file(file_id: str) -> str:
    """Return the id of the run for which a file was made. For an uploaded file, no run has the returned id."""
    return f"workflow_run_{file_id.removeprefix('file_')[:_RUN_KEY_LENGTH]}"


def files(run: Run) -> list[dict[str, Any]]:
    """Return the FileSummary of each file of a run. A URL is never fetched, so the summary is made up from its text."""
    found = []
    given = _decode(run.file)
    made = files_made_for(run)
    for index, one in enumerate(given.get("package", [given])):
        made_up = f"{run.number}-{index}.txt"
        name = one.get("name") or one.get("url", "").partition("?")[0].rpartition("/")[2] or made_up
        identifier = one.get("id") or made[index]
        found.append(file_summary(identifier, name, run.created_at))
    return found


def _usage(run: Run, breakdown: bool) -> dict[str, Any] | None:
    if run.status not in WITH_STEPS:
        return None
    usage: dict[str, Any] = {"credits": 2.0, "totalCredits": 2.0}
    if breakdown:
        usage["breakdown"] = [{"object": "workflow_run", "id": run.id, "credits": 2.0}]
    return usage


def _common(run: Run, workflow_made_at: float) -> dict[str, Any]:
    dashboard = f"https://dashboard.extend.ai/runs/{run.id}"
    ended = run.status in ("PROCESSED", "FAILED", "CANCELLED", "REJECTED", "NEEDS_REVIEW")
    return {
        "object": "workflow_run",
        "id": run.id,
        "workflow": workflow(run.workflow_id, workflow_made_at),
        "workflowVersion": version(run.workflow_id, run.version, workflow_made_at),
        "dashboardUrl": dashboard,
        "status": run.status,
        "batchId": run.batch_id,
        "files": files(run),
        "initialRunAt": time(run.created_at),
        "startTime": time(run.starts_at) if run.started else None,
        "endTime": time(run.ends_at) if ended else None,
        "reviewedByUser": "reviewer@example.com" if run.reviewed_at else None,
        "reviewedAt": time(run.reviewed_at),
        "rejectionNote": run.note,
    }


def summary(run: Run, workflow_made_at: float) -> dict[str, Any]:
    """Return a WorkflowRunSummary, which has no metadata."""
    times = {"createdAt": time(run.created_at), "updatedAt": time(run.updated_at)}
    return {**_common(run, workflow_made_at), **times, "usage": _usage(run, False)}


def run(run: Run, workflow_made_at: float) -> dict[str, Any]:
    """Return a whole WorkflowRun."""
    reason, message = FAILURES[run.number % len(FAILURES)] if run.status == "FAILED" else (None, None)
    return {
        **_common(run, workflow_made_at),
        "metadata": msgspec.Raw(run.metadata),
        "failureReason": reason,
        "failureMessage": message,
        "reviewed": run.reviewed_at is not None,
        "usage": _usage(run, True),
        "stepRuns": step_runs(run, workflow_made_at) if run.status in WITH_STEPS else [],
    }


def step_runs(run: Run, workflow_made_at: float) -> list[dict[str, Any]]:
    """Return the PARSE and EXTRACT steps of a run.

    They contain a made-up invoice, and have 2 to 5 KB. In one run of a hundred they have over 200 KB, to test large
    results.
    """
    chance = random.Random(run.number)  # noqa: S311
    lines = 2400 if run.number % _LARGE_EVERY == _LARGE_EVERY - 1 else chance.randint(1, 22)
    key = run.id.removeprefix("workflow_run_")
    given = files(run)
    shared = {"object": "workflow_step_run", "workflowRunId": run.id, "status": "PROCESSED", "files": given}
    at = time(run.ends_at)
    value = _invoice(run.number, lines, chance)
    parse = {
        "object": "parse_run",
        "id": f"parse_run_{key}",
        "batchId": None,
        "file": given[0],
        "status": "PROCESSED",
        "failureReason": None,
        "failureMessage": None,
        "metadata": None,
        "output": None,
        "outputUrl": f"https://files.example.com/{key}/parse.json",
        "metrics": {"processingTimeMs": 840.0, "pageCount": 1.0},
        "config": {"target": "markdown"},
        "usage": None,
    }
    extract = {
        "object": "extract_run",
        "id": f"extract_run_{key}",
        "status": "PROCESSED",
        "output": {"value": value, "metadata": {"total": {"ocrConfidence": 0.98, "logprobsConfidence": 0.95}}},
        "initialOutput": None,
        "reviewedOutput": None,
        "failureReason": None,
        "failureMessage": None,
        "metadata": None,
        "reviewed": False,
        "edited": False,
        "edits": None,
        "config": {"extractionRules": ""},
        "extractor": None,
        "extractorVersion": None,
        "file": given[0],
        "files": None,
        "parseRunId": f"parse_run_{key}",
        "dashboardUrl": f"https://dashboard.extend.ai/runs/{run.id}/extract",
        "usage": None,
        "createdAt": at,
        "updatedAt": at,
    }
    return [
        {
            **shared,
            "id": f"workflow_step_run_{key}_1",
            "stepType": "PARSE",
            "step": {"object": "workflow_step", "id": "step_parse", "name": "parse", "type": "PARSE"},
            "result": {"parseRun": parse},
        },
        {
            **shared,
            "id": f"workflow_step_run_{key}_2",
            "stepType": "EXTRACT",
            "step": {"object": "workflow_step", "id": "step_extract", "name": "extract", "type": "EXTRACT"},
            "result": {"extractRun": extract},
        },
    ]


def _invoice(number: int, lines: int, chance: random.Random) -> dict[str, Any]:
    items = []
    total = 0
    for line in range(lines):
        quantity, cents = chance.randint(1, 12), chance.randint(99, 49_900)
        total += quantity * cents
        goods = _GOODS[(number + line) % len(_GOODS)]
        items.append({"line": line + 1, "description": goods, "quantity": quantity, "unit_price": cents / 100,
                      "amount": quantity * cents / 100})  # fmt: skip
    return {
        "invoice_number": f"INV-{number:07d}",
        "supplier": chance.choice(("Northwind GmbH", "Acme Ltd", "Globex Inc", "Initech SA")),
        "currency": "EUR",
        "line_items": items,
        "total": total / 100,
    }
