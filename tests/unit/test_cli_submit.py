"""Handing in by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx

from everyrun.cli import client, exits, submit
from tests.unit.cli import EXTEND, SUBMISSION, everyrun

ROWS = '{"id":"a","file":{"url":"https://files.example.com/a.pdf"}}\n' * 3
TAKEN = {"submission_id": "sub_1", "expected": 3, "batches": 1}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    path = tmp_path / "rows.ndjson"
    path.write_text(ROWS)
    return str(path)


@respx.mock
def test_an_upload_without_an_answer_is_repeated_whole_under_one_key(manifest: str) -> None:
    bodies, keys = [], []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.read().decode())
        keys.append(request.headers["idempotency-key"])
        if len(bodies) == 1:
            raise httpx.ReadError("reset")
        return httpx.Response(503, json={"message": "away"}) if len(bodies) == 2 else httpx.Response(202, json=TAKEN)

    respx.post(f"{SUBMISSION}/v1/submissions").mock(side_effect=answer)
    first = everyrun("submit", manifest, "--workflow", "workflow_1")
    assert first.exit_code == 0, first.output
    assert bodies == [ROWS] * 3
    assert len(set(keys)) == 1
    everyrun("submit", manifest, "--workflow", "workflow_1")
    assert keys[3] != keys[0], "the same manifest again is another submission"
    everyrun("submit", manifest, "--workflow", "workflow_1", "--idempotency-key", "mine")
    assert keys[4] == "mine"


@pytest.mark.parametrize("away", [httpx.ConnectError("no"), httpx.Response(503, json={"message": "away"})])
@respx.mock
def test_a_submission_of_unknown_fate_names_the_key_to_repeat_it_under(
    manifest: str, monkeypatch: pytest.MonkeyPatch, away: Any
) -> None:
    monkeypatch.setattr(submit, "PATIENCE", 0.01)
    route = respx.post(f"{SUBMISSION}/v1/submissions").mock(side_effect=lambda _: _raised(away))
    answer = everyrun("submit", manifest, "--workflow", "workflow_1")
    assert answer.exit_code in (exits.ERROR, exits.NOT_FOUND)
    assert f"--idempotency-key {route.calls[0].request.headers['idempotency-key']} " in answer.output


def _raised(given: Any) -> httpx.Response:
    if isinstance(given, Exception):
        raise given
    return httpx.Response(given.status_code, content=given.content)


@respx.mock
def test_a_refused_submission_is_not_repeated(manifest: str) -> None:
    route = respx.post(f"{SUBMISSION}/v1/submissions").respond(409, json={"message": "used for other content"})
    answer = everyrun("submit", manifest, "--workflow", "workflow_1", "--idempotency-key", "mine")
    assert answer.exit_code == exits.ERROR
    assert "not known" not in answer.output
    assert route.call_count == 1


@respx.mock
def test_a_file_that_comes_while_a_folder_is_uploaded_is_left_for_the_next_time(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "b.pdf").write_bytes(b"b")

    def uploaded(request: httpx.Request) -> httpx.Response:
        (folder / "a.pdf").write_bytes(b"a")
        return httpx.Response(200, json={"id": "file_b"})

    respx.post(f"{EXTEND}/files/upload").mock(side_effect=uploaded)
    handed_in = respx.post(f"{SUBMISSION}/v1/submissions").respond(202, json=TAKEN)
    answer = everyrun("submit", str(folder), "--workflow", "workflow_1", EVERYRUN_DATA_DIR=str(tmp_path / "data"))
    assert answer.exit_code == 0, answer.output
    row = {"id": "b.pdf", "file": {"id": "file_b"}, "metadata": {"path": "b.pdf"}}
    assert [json.loads(line) for line in handed_in.calls[0].request.content.splitlines()] == [row]


@respx.mock
def test_rows_that_cannot_be_read_keep_their_numbers_beside_files(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"a")
    manifest = tmp_path / "rows.ndjson"
    manifest.write_text('{"id":1\n{"file":{"path":"%s"}}\n' % (tmp_path / "a.pdf"))
    respx.post(f"{EXTEND}/files/upload").respond(json={"id": "file_a"})
    handed_in = respx.post(f"{SUBMISSION}/v1/submissions").respond(202, json=TAKEN)
    everyrun("submit", str(manifest), "--workflow", "workflow_1", EVERYRUN_DATA_DIR=str(tmp_path / "data"))
    bad, good = handed_in.calls[0].request.content.splitlines()
    assert bad.startswith(b"!the line is not valid JSON")
    assert json.loads(good) == {"file": {"id": "file_a"}}


@respx.mock
def test_a_file_is_known_to_the_workspace_that_it_was_uploaded_to(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(b"a")
    uploads = respx.post(f"{EXTEND}/files/upload").respond(json={"id": "file_a"})
    respx.post(f"{SUBMISSION}/v1/submissions").respond(202, json=TAKEN)

    def sent(**env: str) -> int:
        before, data = uploads.call_count, str(tmp_path / "data")
        answer = everyrun("submit", str(folder), "--workflow", "workflow_1", EVERYRUN_DATA_DIR=data, **env)
        assert answer.exit_code == 0, answer.output
        return uploads.call_count - before

    assert [sent(), sent()] == [1, 0]
    assert "x-extend-workspace-id" not in uploads.calls.last.request.headers
    assert [sent(EXTEND_WORKSPACE_ID="ws_1"), sent(EXTEND_WORKSPACE_ID="ws_1")] == [1, 0]
    assert uploads.calls.last.request.headers["x-extend-workspace-id"] == "ws_1"
    assert [sent(EXTEND_WORKSPACE_ID="ws_2"), sent(EXTEND_API_KEY="sk_2"), sent()] == [1, 1, 0]
    assert b"sk_" not in (tmp_path / "data" / "uploads.sqlite").read_bytes()
