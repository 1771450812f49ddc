"""Results as of a moment are written as they come, however many they are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from everyrun.cli import exits
from everyrun.replay.audit import as_of
from tests.unit.cli import everyrun

STACK = {"EVERYRUN_KAFKA_BOOTSTRAP": "127.0.0.1:1", "EVERYRUN_POSTGRES_DSN": "postgresql://u:p@127.0.0.1:1/d"}
ASK = ("as-of", "2026-03-03T12:00:00Z", "results", "sub_1")


class Tables:
    """So many results, then an error."""

    def __init__(self, count: int, error: Exception | None) -> None:
        self.count, self.error = count, error
        self.offsets: dict[Any, int] = {}

    async def results(self, _submission_id: str) -> AsyncIterator[dict[str, Any]]:
        for number in range(self.count):
            row = {"external_id": f"[a]{number}", "status": "PROCESSED", "file": {}, "metadata": {}}
            yield {**row, "run_id": None, "settled_at": None, "failure_reason": None}
        if self.error is not None:
            raise self.error


def has(monkeypatch: pytest.MonkeyPatch, count: int, error: Exception | None = None) -> None:
    @asynccontextmanager
    async def tables(*_: Any) -> AsyncIterator[Tables]:
        yield Tables(count, error)

    monkeypatch.setattr(as_of, "as_of", tables)


def test_lines_are_written_before_the_last_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 2, OSError("the database went"))
    answer = everyrun(*ASK, "--format", "jsonl", **STACK)
    assert answer.exit_code == exits.ERROR
    assert [line[:22] for line in answer.stdout.splitlines()] == [f'{{"external_id": "[a]{n}"' for n in (0, 1)]
    assert "the database went" in answer.stderr


def test_a_table_ends_somewhere_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 201, OSError("nobody asked for more"))
    answer = everyrun(*ASK, **STACK)
    assert answer.exit_code == exits.OK, answer.output
    assert "[a]199 " in answer.stdout
    assert "[a]200 " not in answer.stdout
    assert "The first 200 are shown" in answer.stderr


@pytest.mark.parametrize("format_", ["table", "jsonl"])
def test_nothing_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch, format_: str) -> None:
    has(monkeypatch, 0)
    answer = everyrun(*ASK, "--format", format_, **STACK)
    assert answer.exit_code == exits.NOT_FOUND
    assert answer.stdout == ""
    assert "the log had nothing of sub_1" in answer.stderr


def test_results_of_a_moment_are_written_as_csv(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 2)
    answer = everyrun(*ASK, "--format", "csv", **STACK)
    assert answer.exit_code == exits.OK, answer.output
    header, *rows = answer.stdout.splitlines()
    assert header.startswith("id,url,")
    assert [row.split(",")[0] for row in rows] == ["[a]0", "[a]1"]


def test_a_moment_in_the_future_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 1)
    assert "is in the future" in everyrun("as-of", "2999-01-01T00:00:00Z", *ASK[2:], **STACK).stderr
    assert "is in the future" not in everyrun(*ASK, **STACK).stderr
