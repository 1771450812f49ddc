"""Handing in by the command line."""

from __future__ import annotations

import itertools
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
import respx
from pyarrow import parquet

from everyrun.cli import client, exits, sending, upload
from tests.unit.cli import EXTEND, SUBMISSION, everyrun
from tests.unit.permissions import held_to

ROWS = "".join(f'{{"file":{{"url":"https://files.example.com/{n}.pdf"}},"id":"{n}"}}\n' for n in range(3))
CHECK = client.Client.check_workflow
TAKEN = {"submission_id": "sub_1", "expected": 3, "batches": 1}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(client.Client, "check_workflow", lambda *_: None)


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    path = tmp_path / "rows.ndjson"
    path.write_text(ROWS)
    return str(path)


def submitted_from(source: str, *options: str, stdin: bytes | None = None) -> list[Any]:
    """Submit a manifest and return the rows that reached the service."""
    bodies: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.read())
        return httpx.Response(202, json=TAKEN)

    with respx.mock:
        respx.post(f"{SUBMISSION}/v1/submissions").mock(side_effect=answer)
        done = everyrun("submit", source, "--workflow", "workflow_1", *options, stdin=stdin)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in bodies[0].splitlines()]


def test_a_parquet_file_is_a_manifest(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    links = [f"https://files.example.com/{n}.pdf" for n in range(3)]
    parquet.write_table(pa.table({"id": [1, 2, 3], "url": links, "year": [2026] * 3, "rest": ["x"] * 3}), path)
    assert submitted_from(str(path), "--metadata-columns", "year") == [
        {"id": str(n + 1), "file": {"url": link}, "metadata": {"year": 2026}} for n, link in enumerate(links)
    ]


def test_standard_input_is_a_manifest_in_the_named_format(tmp_path: Path) -> None:
    assert submitted_from("-", "--format", "ndjson", stdin=ROWS.encode()) == [
        json.loads(line) for line in ROWS.splitlines()
    ]
    csv = b"id;url\na;https://files.example.com/a.pdf\n"
    assert [row["id"] for row in submitted_from("-", "--format", "csv", stdin=csv)] == ["a"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("-",), "standard input needs --format: csv, ndjson, json, parquet"),
        (("-", "--format", "xml"), "must be one of csv, ndjson, json, parquet"),
        (("-", "--format", "parquet"), "standard input: is not a Parquet file"),
        (("-", "--format", "csv"), "standard input: the CSV has no column for the file"),
        (("MANIFEST", "--format", "csv"), "--format is for standard input"),
    ],
)
def test_a_wrong_standard_input_says_what_to_do(manifest: str, options: tuple[str, ...], says: str) -> None:
    given = [manifest if option == "MANIFEST" else option for option in options]
    done = everyrun("submit", *given, "--workflow", "workflow_1", stdin=b"a,b\n1,2\n")
    assert done.exit_code != 0
    assert says in done.output


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
    monkeypatch.setattr(sending, "PATIENCE", 0.01)
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


# --- what is submitted


@pytest.fixture
def taken() -> Iterator[list[dict[str, Any]]]:
    """Yield the rows that were submitted. The service accepts every row, and Extend accepts every file."""
    rows: list[dict[str, Any]] = []

    def handed_in(request: httpx.Request) -> httpx.Response:
        rows[:] = [json.loads(line) for line in request.read().splitlines()]
        return httpx.Response(202, json=TAKEN)

    with respx.mock(assert_all_called=False) as router:
        router.post(f"{SUBMISSION}/v1/submissions").mock(side_effect=handed_in)
        files = itertools.count(1)
        upload_route = router.post(f"{EXTEND}/files/upload", name="upload")
        upload_route.mock(side_effect=lambda request: httpx.Response(200, json={"id": f"file_{next(files)}"}))
        router.get(url__regex=rf"{EXTEND}/files/.*", name="get").respond(json={"id": "file"})
        yield rows


def run(tmp_path: Path, source: Path | str, *options: str, **env: str) -> Any:
    env = {"EVERYRUN_DATA_DIR": str(tmp_path / "data")} | env
    done = everyrun("submit", str(source), "--workflow", "workflow_1", *options, **env)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done


def folder_of(tmp_path: Path, *names: str, content: bytes = b"%PDF-1.7") -> Path:
    root = tmp_path / "d"
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content + name.encode())
    return root


def test_a_folder_says_what_is_sent_and_what_is_left_out(tmp_path: Path, taken: list[dict[str, Any]]) -> None:
    trash = [f".Trash/{number}.pdf" for number in range(5)]
    root = folder_of(tmp_path, "a.pdf", "e.docm", "~$x.docx", "scan0001", *trash)
    done = run(tmp_path, root)
    assert done.exit_code == 0, done.output
    assert "Found 9 files: 2 to send, 7 left out" in done.output
    assert "5 in a hidden folder or the trash: .Trash/0.pdf, .Trash/1.pdf, .Trash/2.pdf and 2 more" in done.output
    assert "1 of a type that Extend does not accept: e.docm" in done.output
    assert [row["id"] for row in taken] == ["a.pdf", "scan0001"]
    assert ".Trash/4.pdf" in run(tmp_path, root, "--list-skipped", "--dry-run").output


def test_nothing_is_sent_of_a_folder_that_cannot_be_read_whole(tmp_path: Path, taken: list[dict[str, Any]]) -> None:
    root = folder_of(tmp_path, "a.pdf", "locked/b.pdf")
    (root / "empty.pdf").touch()
    (root / "locked").chmod(0)
    with held_to():
        done = run(tmp_path, root)
        assert done.exit_code == exits.ERROR
        assert "locked: Permission denied" in done.output
        assert "empty.pdf: the file is empty" in done.output
        assert "--skip-unreadable" in done.output
        assert taken == []
        assert run(tmp_path, root, "--skip-unreadable").exit_code == 0
    assert [row["id"] for row in taken] == ["a.pdf"]
    (root / "locked").chmod(0o700)


def test_a_name_that_is_not_utf8_is_sent(tmp_path: Path, taken: list[dict[str, Any]]) -> None:
    root = folder_of(tmp_path, "a.pdf")
    Path(os.fsdecode(os.fsencode(root) + b"/Rechnung_\374.pdf")).write_bytes(b"%PDF-")
    done = run(tmp_path, root)
    assert done.exit_code == 0, done.output
    assert [row["metadata"] for row in taken] == [{"path": "Rechnung_\\xfc.pdf"}, {"path": "a.pdf"}]


def test_the_password_of_a_local_file_goes_with_its_upload(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF-")
    rows = tmp_path / "rows.csv"
    rows.write_text("id,path,password,name\n1,a.pdf,hunter2,Invoice.pdf\n2,a.pdf,,\n3,a.pdf,,\n")
    with respx.mock(assert_all_called=False) as router:
        bodies = []

        def keep(request: httpx.Request) -> httpx.Response:
            bodies.append(request.read())
            return httpx.Response(200, json={"id": f"file_{b'hunter2' in bodies[-1]}"})

        router.post(f"{EXTEND}/files/upload").mock(side_effect=keep)
        handed_in = router.post(f"{SUBMISSION}/v1/submissions").respond(202, json=TAKEN)
        done = run(tmp_path, rows)
        assert done.exit_code == 0, done.output
        sent = [json.loads(line)["file"]["id"] for line in handed_in.calls[0].request.content.splitlines()]
    assert sent == ["file_True", "file_False", "file_False"]
    (with_password,) = [body for body in bodies if b"hunter2" in body]
    assert b'name="password"' in with_password
    assert b'filename="Invoice.pdf"' in with_password
    assert len(bodies) == 2
    assert b"hunter2" not in (tmp_path / "data" / "uploads.sqlite").read_bytes()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("id,path,url\n1,a.pdf,https://e.com/a.pdf\n", "it has path, url"),
        ("id,path\n1,\n", "file"),
        ("id,path\n1,nowhere.pdf\n", "there is no such file"),
        ("id,path\n1,.\n", "is not a file"),
        ("id,path\n1,empty.pdf\n", "the file is empty"),
    ],
)
def test_a_row_with_a_file_that_cannot_be_sent_is_a_bad_row(
    tmp_path: Path, taken: list[dict[str, Any]], rows: str, said: str
) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF-")
    (tmp_path / "empty.pdf").touch()
    (tmp_path / "rows.csv").write_text(rows)
    done = run(tmp_path, tmp_path / "rows.csv")
    assert done.exit_code == exits.ERROR
    assert said in done.output
    assert taken == []


def test_url_and_path_may_stand_side_by_side(tmp_path: Path, taken: list[dict[str, Any]]) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF-")
    (tmp_path / "rows.csv").write_text("id,path,url\n1,a.pdf,\n2,,https://e.com/a.pdf\n")
    assert run(tmp_path, tmp_path / "rows.csv").exit_code == 0
    assert [row["file"] for row in taken] == [{"id": "file_1"}, {"url": "https://e.com/a.pdf"}]


def test_columns_are_known_in_capitals_and_those_left_out_are_named(
    tmp_path: Path, taken: list[dict[str, Any]]
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("ID,Url,Supplier,Year\na-1,https://e.com/a.pdf,ACME,2026\n")
    done = run(tmp_path, rows)
    assert "ids are from the column ID" in done.output
    assert "Left out: the columns Supplier, Year. To keep them as metadata: --metadata-columns Supplier,Year, or" in (
        done.output
    )
    assert taken == [{"id": "a-1", "file": {"url": "https://e.com/a.pdf"}, "metadata": {}}]
    done = run(tmp_path, rows, "--metadata-columns", "supplier,year")
    assert "Left out" not in done.output
    assert taken[0]["metadata"] == {"Supplier": "ACME", "Year": "2026"}
    rows.write_text("Nr,Link\na-1,https://e.com/a.pdf\n")
    done = run(tmp_path, rows)
    assert "--url-column" in done.output
    done = run(tmp_path, rows, "--url-column", "link", "--id-column", "Nr", "--metadata-columns", "nr")
    assert done.exit_code == 0, done.output
    assert taken == [{"id": "a-1", "file": {"url": "https://e.com/a.pdf"}, "metadata": {"Nr": "a-1"}}]
    rows.write_text("Url\nhttps://e.com/a.pdf\n")
    assert "ids are the rows' numbers" in run(tmp_path, rows).output


def test_a_csv_in_windows_1252_says_what_to_do_and_is_read_when_it_is_done(
    tmp_path: Path, taken: list[dict[str, Any]]
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_bytes("ID;URL;Lieferant\r\n1;https://e.com/1.pdf;M\u00fcller\r\n".encode("cp1252"))
    done = run(tmp_path, rows)
    assert done.exit_code == exits.ERROR
    assert "line 2 is not UTF-8" in done.output
    assert "--encoding windows-1252" in done.output
    assert run(tmp_path, rows, "--encoding", "windows-1252", "--metadata-columns", "*").exit_code == 0
    assert taken[0]["metadata"] == {"Lieferant": "M\u00fcller"}


def test_everything_is_checked_before_a_file_is_uploaded_and_all_that_is_bad_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF-")
    rows = tmp_path / "rows.ndjson"
    given = [
        {"id": "a", "file": {"path": "a.pdf"}},
        {"id": "b", "file": {"path": "a.pdf"}, "metadata": "no"},
        {"id": "a", "file": {"path": "a.pdf"}},
        {"id": "c", "file": {"path": "none.pdf"}},
    ]
    rows.write_text("\n" + "\n\n".join(map(json.dumps, given)) + "\n{\n")
    with respx.mock(assert_all_called=False) as router:
        route = router.post(f"{EXTEND}/files/upload").respond(json={"id": "file_a"})
        done = run(tmp_path, rows)
        assert done.exit_code == exits.ERROR
        assert route.call_count == 0
    assert "4 bad rows; nothing was submitted" in done.output
    shown = [line.split() for line in done.output.splitlines() if line.startswith("\u2502")]
    assert [(line[1], line[3], line[5]) for line in shown] == [
        ("2", "4", "b"),
        ("3", "6", "a"),
        ("4", "8", "c"),
        ("5", "9", "\u2502"),
    ]
    for said in ("must be an object, not text", "is also the id of row 1", "there is no such file", "not valid JSON"):
        assert said in done.output
    assert run(tmp_path, rows, "--dry-run").output == done.output


def test_a_ragged_row_tells_its_reason(tmp_path: Path, taken: list[dict[str, Any]]) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("id,url\n1,https://e.com/a.pdf\n2,https://e.com/b.pdf,x\n")
    done = run(tmp_path, rows)
    assert "the line has 3 fields, the header 2" in done.output
    assert taken == []


def test_all_files_that_fail_are_named_and_the_others_remembered(tmp_path: Path) -> None:
    root = folder_of(tmp_path, "a.pdf", "b.pdf", "c.pdf")
    with respx.mock(assert_all_called=False) as router:
        refused = [b"a.pdf", b"c.pdf"]
        route = router.post(f"{EXTEND}/files/upload")
        route.mock(
            side_effect=lambda request: (
                httpx.Response(400, text="no such type")
                if any(name in request.read() for name in refused)
                else httpx.Response(200, json={"id": "file_b"})
            )
        )
        done = run(tmp_path, root)
        assert done.exit_code == exits.ERROR
        assert "2 files could not be uploaded to Extend; nothing was submitted" in done.output
        assert done.output.count("400: no such type") == 2
        refused.clear()
        router.post(f"{SUBMISSION}/v1/submissions").respond(202, json=TAKEN)
        assert "1 of 3 files had been uploaded before" in run(tmp_path, root).output
        assert route.call_count == 5


def test_an_error_of_the_account_ends_the_uploads(tmp_path: Path) -> None:
    root = folder_of(tmp_path, *(f"{number}.pdf" for number in range(50)))
    with respx.mock(assert_all_called=False) as router:
        route = router.post(f"{EXTEND}/files/upload").respond(401, text="who are you")
        done = run(tmp_path, root)
        assert "Extend refuses files of this account: 401: who are you" in done.output
        assert route.call_count <= 16


def test_a_key_with_a_line_break_is_not_shown(tmp_path: Path) -> None:
    done = run(tmp_path, folder_of(tmp_path, "a.pdf"), EXTEND_API_KEY="sk_live\n0123")
    assert done.exit_code == exits.ERROR
    assert "EXTEND_API_KEY" in done.output
    assert "0123" not in done.output


@pytest.mark.parametrize(("later", "options"), [(upload.CHECK_AFTER + 1, []), (1, ["--again"])])
def test_extend_is_asked_if_it_still_has_what_was_uploaded_long_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: float, options: list[str]
) -> None:
    root, now = folder_of(tmp_path, "a.pdf", "b.pdf"), [1_000_000.0]
    monkeypatch.setattr(upload.time, "time", lambda: now[0])
    gone: list[str] = []
    with respx.mock(assert_all_called=False) as router:
        numbers = itertools.count(1)
        uploads = router.post(f"{EXTEND}/files/upload")
        uploads.mock(side_effect=lambda request: httpx.Response(200, json={"id": f"file_{next(numbers)}"}))
        asked = router.get(url__regex=rf"{EXTEND}/files/.*")
        asked.mock(side_effect=lambda request: httpx.Response(404 if request.url.path.split("/")[-1] in gone else 200))
        handed_in = router.post(f"{SUBMISSION}/v1/submissions").respond(202, json=TAKEN)
        run(tmp_path, root)
        run(tmp_path, root)
        assert (uploads.call_count, asked.call_count) == (2, 0)
        now[0] += later
        gone.append("file_1")
        run(tmp_path, root, *options)
        assert (uploads.call_count, asked.call_count) == (3, 2)
        ids = {json.loads(line)["file"]["id"] for line in handed_in.calls.last.request.content.splitlines()}
        assert ids == {"file_2", "file_3"}
        run(tmp_path, root)
        assert (uploads.call_count, asked.call_count) == (3, 2)


@respx.mock
def test_what_was_submitted_before_is_not_submitted_again_unless_it_is_wanted(manifest: str) -> None:
    message = "These 3 rows were submitted before: sub_0, 2026-11-26 12:00 UTC"

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.params["once"] == "true":
            return httpx.Response(409, json={"code": "SUBMITTED_BEFORE", "message": message})
        return httpx.Response(202, json=TAKEN)

    route = respx.post(f"{SUBMISSION}/v1/submissions").mock(side_effect=answer)
    done = everyrun("submit", manifest, "--workflow", "workflow_1")
    assert done.exit_code == exits.SUBMITTED_BEFORE
    assert message in done.output
    assert "--again" in done.output
    assert route.call_count == 1
    assert everyrun("submit", manifest, "--workflow", "workflow_1", "--again").exit_code == 0


@pytest.mark.parametrize(
    "options",
    [
        ["--include", "*.pdf"],
        ["--skip-unreadable"],
        ["--delimiter", "ab"],
        ["--encoding", "hex"],
        ["--id-column", "none"],
        ["--workflow", "w\udcff"],
        ["--workflow", "w\n"],
        ["--workflow", ""],
        ["--idempotency-key", "\u00e9"],
    ],
)
def test_an_option_that_is_of_no_use_is_refused(
    tmp_path: Path, taken: list[dict[str, Any]], options: list[str]
) -> None:
    (tmp_path / "rows.csv").write_text("url\nhttps://e.com/a.pdf\n")
    done = run(tmp_path, tmp_path / "rows.csv", *options)
    assert done.exit_code in (exits.ERROR, exits.USAGE)
    assert taken == []


@pytest.mark.parametrize("content", [b"", b"not a database, but long enough to be looked at" * 100])
def test_a_journal_that_cannot_be_used_is_named(tmp_path: Path, taken: list[dict[str, Any]], content: bytes) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "uploads.sqlite").write_bytes(content)
    done = run(tmp_path, folder_of(tmp_path, "a.pdf"))
    assert (done.exit_code == 0) == (not content)
    assert ("uploads.sqlite cannot be used" in done.output) == bool(content)


def test_json_is_taken_as_by_the_service(tmp_path: Path, taken: list[dict[str, Any]]) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text('{"inputs": [{"id": "a", "file": {"url": "https://e.com/a.pdf"}, "metadata": {"n": 1.5}}]}')
    assert run(tmp_path, rows).exit_code == 0
    assert taken == [{"id": "a", "file": {"url": "https://e.com/a.pdf"}, "metadata": {"n": 1.5}}]


# --- what a new user stumbles over


def test_the_workflow_is_checked_before_a_file_is_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.Client, "check_workflow", CHECK)
    root = folder_of(tmp_path, "a.pdf")
    with respx.mock(assert_all_called=False) as router:
        upload_route = router.post(f"{EXTEND}/files/upload").respond(json={"id": "file_1"})
        router.post(f"{SUBMISSION}/v1/submissions").respond(202, json=TAKEN)
        problem = {"code": "UNKNOWN_VERSION", "message": "no version '99'; there are: 2, 1"}
        check = router.get(f"{SUBMISSION}/v1/workflows/check").respond(422, json=problem)
        for options in ((), ("--dry-run",)):
            done = run(tmp_path, root, "--workflow-version", "99", *options)
            assert done.exit_code == exits.ERROR
            assert "no version '99'; there are: 2, 1" in done.output
        assert dict(check.calls[0].request.url.params) == {"workflow_id": "workflow_1", "workflow_version": "99"}
        assert not upload_route.called
        check.respond(200, json={"workflow_id": "workflow_1", "workflow_version": None})
        assert "Extend has the workflow workflow_1." in run(tmp_path, root, "--dry-run").output
        assert not upload_route.called
        assert run(tmp_path, root).exit_code == 0
        check.respond(200, json={"workflow_unchecked": "no answer within 3 s"})
        assert "The workflow was not checked: no answer within 3 s." in run(tmp_path, root, "--dry-run").output
        check.mock(side_effect=httpx.ConnectError("refused"))
        done = run(tmp_path, root, "--dry-run")
    assert (done.exit_code, "was not checked: http://submission.example does not answer" in done.output) == (0, True)
    done = run(tmp_path, root, "--dry-run", EVERYRUN_SUBMISSION_URL="", EVERYRUN_QUERY_URL="")
    assert done.exit_code == 0, done.output
    assert "The workflow was not checked: no stack is running, and the settings name no services." in done.output


def test_a_dry_run_shows_the_first_row_and_every_file(tmp_path: Path, taken: list[dict[str, Any]]) -> None:
    root = folder_of(tmp_path, "a.pdf", "b.PNG", "scan", "left.zip")
    done = run(tmp_path, root, "--dry-run", "--list-files")
    assert done.stdout.splitlines() == [f"pdf\t{root}/a.pdf", f"png\t{root}/b.PNG", f"pdf\t{root}/scan"]
    assert '{"id": "a.pdf", "file": {"path": "' in done.stderr
    assert "3 inputs in 1 batch, 3 files to upload; every row is valid. Nothing was submitted." in done.stderr
    rows = tmp_path / "rows.csv"
    rows.write_text("id,path,password,c\n1,d/a.pdf,hunter2,\u00fc\n")
    done = run(tmp_path, rows, "--dry-run", "--metadata-columns", "c")
    assert '"settings": {"password": "***"}}, "metadata": {"path": "d/a.pdf", "c": "\u00fc"}}' in done.stderr
    assert "hunter2" not in done.output
    assert "1 input in 1 batch, 1 file to upload" in done.stderr
    assert run(tmp_path, root, "--list-files").exit_code == exits.USAGE
    assert taken == []


def test_a_row_keeps_the_path_of_its_uploaded_file(tmp_path: Path, taken: list[dict[str, Any]]) -> None:
    folder_of(tmp_path, "a.pdf")
    rows = tmp_path / "rows.ndjson"
    given = [
        {"id": "1", "file": {"path": "d/a.pdf"}},
        {"id": "2", "file": {"path": "d/a.pdf"}, "metadata": {"path": 7}},
    ]
    rows.write_text("\n".join(map(json.dumps, given)))
    assert run(tmp_path, rows).exit_code == 0
    assert [(row["file"], row["metadata"]) for row in taken] == [
        ({"id": "file_1"}, {"path": "d/a.pdf"}),
        ({"id": "file_1"}, {"path": 7}),
    ]


@pytest.mark.parametrize("option", ["--include", "--exclude"])
def test_a_pattern_that_matches_nothing_ends_the_command(
    tmp_path: Path, taken: list[dict[str, Any]], option: str
) -> None:
    done = run(tmp_path, folder_of(tmp_path, "a.pdf"), option, "rechnungne")
    assert done.exit_code == exits.USAGE
    assert f"{option} 'rechnungne' matches no file or folder in" in done.output
    assert taken == []


def test_files_of_the_same_content_are_mentioned(tmp_path: Path, taken: list[dict[str, Any]]) -> None:
    root = tmp_path / "d"
    root.mkdir()
    for name in ("a.pdf", "b.pdf", "c.pdf"):
        (root / name).write_bytes(b"%PDF-1.7")
    done = run(tmp_path, root)
    assert "2 files have the same content as another one, and will be sent too: a.pdf, b.pdf, c.pdf" in done.output
    assert len(taken) == 3


def test_the_suggested_option_for_metadata_works_as_it_is_printed(tmp_path: Path, taken: list[dict[str, Any]]) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text('url,"Betrag, netto","It\'s ""x""",$HOME a\nhttps://e.com/a.pdf,"1,5",b,c\n')
    done = run(tmp_path, rows)
    suggested = shlex.split(done.output.partition("To keep them as metadata: ")[2].partition(", or '*'")[0])
    wanted = {"Betrag, netto": "1,5", 'It\'s "x"': "b", "$HOME a": "c"}
    assert run(tmp_path, rows, *suggested).exit_code == 0
    assert taken[0]["metadata"] == wanted
    one = ["--metadata-columns", '"Betrag, netto"', "--metadata-columns", "$HOME a"]
    assert run(tmp_path, rows, *one).exit_code == 0
    assert taken[0]["metadata"] == {"Betrag, netto": "1,5", "$HOME a": "c"}


def test_results_without_all_columns_of_the_outcome_are_warned_about(
    tmp_path: Path, taken: list[dict[str, Any]]
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("url,name,status,run_id\nhttps://e.com/a.pdf,'=1+1,FAILED,run_1\n")
    done = run(tmp_path, rows)
    assert (
        "it has some columns of results, but not failure_reason, failure_message, batch_id, settled_at" in done.output
    )
    assert "1 cell begins with an apostrophe before a formula, such as '=1+1" in done.output
    assert taken[0]["file"]["name"] == "'=1+1"
    rows.write_text("url,name,status\nhttps://e.com/a.pdf,'quoted',open\n")
    assert "apostrophe" not in run(tmp_path, rows).output


def test_an_interrupted_upload_says_what_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(files: Any, account: Any, journal: Any, done: Any, ask_again: bool) -> list[str]:
        done(False)
        done(True)
        raise KeyboardInterrupt

    monkeypatch.setattr(sending, "upload_all", interrupted)
    done = run(tmp_path, folder_of(tmp_path, "a.pdf", "b.pdf", "c.pdf"))
    assert done.exit_code == exits.INTERRUPTED
    said = "Nothing was submitted. 2 of 3 files are uploaded and remembered: run the same command again to continue."
    assert said in done.output


def _interrupt(_request: httpx.Request) -> httpx.Response:
    raise KeyboardInterrupt


@respx.mock
def test_an_interrupted_submission_says_how_to_repeat_it(manifest: str) -> None:
    respx.post(f"{SUBMISSION}/v1/submissions").mock(side_effect=_interrupt)
    done = everyrun("submit", manifest, "--workflow", "workflow_1", "--idempotency-key", "mine")
    assert done.exit_code == exits.INTERRUPTED
    assert "The same command with --idempotency-key mine does not submit them twice" in done.output


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.xlsx", "", 'it is a spreadsheet. Save it as "CSV UTF-8"'),
        ("rows.txt", "", "If it is a table (Excel's Unicode Text), rename it to rows.csv"),
        ("a b.pdf", "", "To send one document, name its folder: everyrun submit {folder} --include 'a b.pdf'"),
        ("rows.csv", "path\nscans\\a.pdf\n", "write a path with slashes: {folder}/scans/a.pdf"),
        (
            "rows.csv",
            "id|url\n1|https://e.com/a.pdf\n",
            "If another character separates the columns, name it with --delimiter",
        ),
    ],
)
def test_a_wrong_kind_of_file_says_what_to_do(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    done = run(tmp_path, tmp_path / name)
    assert done.exit_code == exits.ERROR
    assert said.format(folder=tmp_path) in done.output
