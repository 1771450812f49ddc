"""The vendor's objects, as its SDK's types want them; nullable fields are null, not left out."""

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
    "png": "IMG",
    "jpg": "IMG",
    "jpeg": "IMG",
    "txt": "TXT",
    "docx": "DOCX",
    "xlsx": "EXCEL",
}
#: One run in this many has a large result.
_LARGE_EVERY = 100


def time(moment: float | None) -> str | None:
    """Unix seconds as Extend writes times; None stays None."""
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def workflow(workflow_id: str, created_at: float) -> dict[str, Any]:
    """A WorkflowSummary."""
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
    """A WorkflowVersionSummary."""
    return {
        "object": "workflow_version",
        "id": f"workflow_version_{workflow_id.removeprefix('workflow_')}_{name}",
        "version": name,
        "name": None,
        "createdAt": time(created_at),
        "createdBy": None,
    }


def _file(identifier: str, name: str, created_at: float) -> dict[str, Any]:
    at = time(created_at)
    return {
        "object": "file",
        "id": identifier,
        "name": name,
        "type": _TYPES.get(name.rpartition(".")[2].lower()),
        "parentFileId": None,
        "metadata": {"pageCount": 1},
        "createdAt": at,
        "updatedAt": at,
    }


def uploaded(identifier: str, name: str, at: float) -> dict[str, Any]:
    """The File of an upload."""
    return {**_file(identifier, name, at), "presignedUrl": None, "contents": None}


def files(run: Run) -> list[dict[str, Any]]:
    """The FileSummary of each of a run's files; their urls are never fetched."""
    found = []
    given = _decode(run.file)
    for place, one in enumerate(given.get("package", [given])):
        made_up = f"{run.number}-{place}.txt"
        name = one.get("name") or one.get("url", "").partition("?")[0].rpartition("/")[2] or made_up
        identifier = one.get("id") or f"file_{run.id.removeprefix('workflow_run_')}{place or ''}"
        found.append(_file(identifier, name, run.created_at))
    return found


def _usage(run: Run, breakdown: bool) -> dict[str, Any] | None:
    if run.status not in WITH_STEPS:
        return None
    usage: dict[str, Any] = {"credits": 2.0, "totalCredits": 2.0}
    if breakdown:
        usage["breakdown"] = [{"object": "workflow_run", "id": run.id, "credits": 2.0}]
    return usage


def _common(run: Run, born: float) -> dict[str, Any]:
    dashboard = f"https://dashboard.extend.ai/runs/{run.id}"
    ended = run.status in ("PROCESSED", "FAILED", "CANCELLED", "REJECTED", "NEEDS_REVIEW")
    return {
        "object": "workflow_run",
        "id": run.id,
        "workflow": workflow(run.workflow_id, born),
        "workflowVersion": version(run.workflow_id, run.version, born),
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


def summary(run: Run, born: float) -> dict[str, Any]:
    """A WorkflowRunSummary, as a list holds it: without metadata."""
    times = {"createdAt": time(run.created_at), "updatedAt": time(run.updated_at)}
    return {**_common(run, born), **times, "usage": _usage(run, False)}


def run(run: Run, born: float) -> dict[str, Any]:
    """A WorkflowRun, whole."""
    reason, message = FAILURES[run.number % len(FAILURES)] if run.status == "FAILED" else (None, None)
    return {
        **_common(run, born),
        "metadata": msgspec.Raw(run.metadata),
        "failureReason": reason,
        "failureMessage": message,
        "reviewed": run.reviewed_at is not None,
        "usage": _usage(run, True),
        "stepRuns": step_runs(run, born) if run.status in WITH_STEPS else [],
    }


def step_runs(run: Run, born: float) -> list[dict[str, Any]]:
    """The PARSE and EXTRACT steps: 2 to 6 KB of an invoice, in one run of a hundred over 200 KB."""
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
