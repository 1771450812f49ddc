"""``everyrun as-of`` writes each result as it is read, and limits tables."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from everyrun.cli import exits
from everyrun.replay.audit import as_of
from tests.unit.cli import everyrun

STACK = {"EVERYRUN_KAFKA_BOOTSTRAP": "127.0.0.1:1", "EVERYRUN_POSTGRES_DSN": "postgresql://u:p@127.0.0.1:1/d"}
COMMAND = ("as-of", "2026-03-03T12:00:00Z", "results", "sub_1")


class Tables:
    """Fake tables with ``count`` results, followed by an error if one is given."""

    def __init__(self, count: int, error: Exception | None) -> None:
        self.count, self.error = count, error
        self.offsets: dict[Any, int] = {}

    async def results(self, _submission_id: str) -> AsyncIterator[dict[str, Any]]:
        for number in range(self.count):
            row = {"external_id": f"[a]{number}", "status": "PROCESSED", "file": {}, "metadata": {}}
            yield {**row, "run_id": None, "settled_at": None, "failure_reason": None}
        if self.error is not None:
            raise self.error


def with_results(monkeypatch: pytest.MonkeyPatch, count: int, error: Exception | None = None) -> None:
    @asynccontextmanager
    async def tables(*_: Any) -> AsyncIterator[Tables]:
        yield Tables(count, error)

    monkeypatch.setattr(as_of, "as_of", tables)


def test_lines_are_written_as_rows_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with_results(monkeypatch, 2, OSError("the connection was lost"))
    answer = everyrun(*COMMAND, "--format", "jsonl", **STACK)
    assert answer.exit_code == exits.ERROR
    assert [line[:22] for line in answer.stdout.splitlines()] == [f'{{"external_id": "[a]{n}"' for n in (0, 1)]
    assert "the connection was lost" in answer.stderr


def test_table_is_limited_and_a_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with_results(monkeypatch, 201, OSError("more rows were read than shown"))
    answer = everyrun(*COMMAND, **STACK)
    assert answer.exit_code == exits.OK, answer.output
    assert "[a]199 " in answer.stdout
    assert "[a]200 " not in answer.stdout
    assert "The first 200 are shown" in answer.stderr


@pytest.mark.parametrize("format_", ["table", "jsonl"])
def test_unknown_submission_is_not_found(monkeypatch: pytest.MonkeyPatch, format_: str) -> None:
    with_results(monkeypatch, 0)
    answer = everyrun(*COMMAND, "--format", format_, **STACK)
    assert answer.exit_code == exits.NOT_FOUND
    assert answer.stdout == ""
    assert "the log had nothing about sub_1" in answer.stderr


def test_results_are_written_as_csv(monkeypatch: pytest.MonkeyPatch) -> None:
    with_results(monkeypatch, 2)
    answer = everyrun(*COMMAND, "--format", "csv", **STACK)
    assert answer.exit_code == exits.OK, answer.output
    header, *rows = answer.stdout.splitlines()
    assert header.startswith("id,url,")
    assert [row.split(",")[0] for row in rows] == ["[a]0", "[a]1"]


def test_time_in_the_future_causes_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    with_results(monkeypatch, 1)
    assert "is in the future" in everyrun("as-of", "2999-01-01T00:00:00Z", *COMMAND[2:], **STACK).stderr
    assert "is in the future" not in everyrun(*COMMAND, **STACK).stderr
