"""Commands run here, on services that `respx` plays."""

from __future__ import annotations

from typing import Any

import httpx
from click.testing import Result
from typer.testing import CliRunner

from everyrun.cli.app import app

SUBMISSION, QUERY, EXTEND = "http://submission.example", "http://query.example", "http://extend.example"
ENV = {
    "EVERYRUN_DATA_DIR": "/nowhere",
    "EVERYRUN_SUBMISSION_URL": SUBMISSION,
    "EVERYRUN_QUERY_URL": QUERY,
    "EVERYRUN_API_TOKEN": "a-token-of-some-length",
    "EVERYRUN_EXTEND_BASE_URL": EXTEND,
    "EXTEND_API_KEY": "sk_1",
    "COLUMNS": "400",
}


def everyrun(*command: str, stdin: bytes | None = None, **env: str) -> Result:
    """Run a command to its end."""
    return CliRunner().invoke(app, list(command), input=stdin, env=ENV | env)


def page(name: str, rows: list[dict[str, Any]], **more: Any) -> httpx.Response:
    """The only page of a list."""
    return httpx.Response(200, json={name: rows, "next_cursor": None, **more})
