"""``everyrun export`` writes whole outputs, and remembers what it has exported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx

from everyrun.cli import exits
from tests.unit.cli import QUERY, everyrun


class Broken(httpx.SyncByteStream):
    """A body that ends too early."""

    def __iter__(self) -> Iterator[bytes]:
        yield b"half"
        raise httpx.RemoteProtocolError("incomplete")


def export(*options: str, not_sent: int = 0, code: int = 200, **answer: Any) -> tuple[Any, respx.Route]:
    headers = {"everyrun-export": answer.pop("scope", "all"), "everyrun-export-cursor": "c2"}
    headers["everyrun-not-sent"] = str(not_sent)
    with respx.mock(assert_all_called=False) as router:
        route = router.get(f"{QUERY}/v1/submissions/sub_1/export")
        route.mock(return_value=httpx.Response(code, headers=headers, **({"content": b"a,b\n"} | answer)))
        return everyrun("export", "sub_1", *options), route


def test_an_export_goes_to_standard_output_or_a_file(tmp_path: Path) -> None:
    done, route = export()
    assert (done.exit_code, done.stdout) == (0, "a,b\n")
    assert dict(route.calls[0].request.url.params) == {"format": "csv", "extracted": "false"}
    done, route = export("--output", str(tmp_path / "x.parquet"), "--extracted", "--status", "failed", not_sent=2)
    assert (tmp_path / "x.parquet").read_bytes() == b"a,b\n"
    params = route.calls[0].request.url.params
    assert (params["format"], params["extracted"], params["status"]) == ("parquet", "true", "FAILED")
    assert "2 inputs were not sent yet and not exported; see: everyrun report sub_1" in done.stderr


@pytest.mark.parametrize(("name", "format_"), [("x.jsonl", "ndjson"), ("x.CSV", "csv"), ("x", "csv")])
def test_the_name_decides_the_format(tmp_path: Path, name: str, format_: str) -> None:
    _, route = export("--output", str(tmp_path / name))
    assert route.calls[0].request.url.params["format"] == format_


def test_the_second_export_brings_what_changed(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    _, route = export("--since", str(state))
    assert "since" not in route.calls[0].request.url.params
    assert json.loads(state.read_text()) == {"submission_id": "sub_1", "cursor": "c2"}
    state.write_text(json.dumps({"submission_id": "sub_1", "cursor": "c1"}))
    done, route = export("--since", str(state), scope="changes")
    assert route.calls[0].request.url.params["since"] == "c1"
    assert "Wrote what has changed since the last export" in done.stderr
    assert json.loads(state.read_text())["cursor"] == "c2"
    done, _ = export("--since", str(state), scope="all")
    assert "the tables were rebuilt or restored" in done.stderr


def test_a_stream_that_breaks_off_changes_nothing(tmp_path: Path) -> None:
    output, state = tmp_path / "x.csv", tmp_path / "state.json"
    output.write_text("old")
    done, _ = export("--output", str(output), "--since", str(state), content=None, stream=Broken())
    assert done.exit_code == exits.ERROR
    assert "broke off (RemoteProtocolError); the answer is incomplete" in done.stderr
    assert output.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.csv"]


def test_an_error_is_shown_and_writes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "x.csv"
    answer = {"code": "INVALID_REQUEST", "message": "since: was made with other filters"}
    done, _ = export("--output", str(output), code=422, content=json.dumps(answer).encode())
    assert done.exit_code == exits.ERROR
    assert "since: was made with other filters" in done.stderr
    assert not output.exists()


@pytest.mark.parametrize(
    ("content", "said"), [("x", "was not written by"), ('{"submission_id": "sub_2", "cursor": "c"}', "belongs to")]
)
def test_a_file_of_another_use_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "s").write_text(content)
    done, _ = export("--since", str(tmp_path / "s"))
    assert done.exit_code != 0
    assert said in done.stderr
    assert (tmp_path / "s").read_text() == content


@pytest.mark.parametrize(
    ("output", "said"),
    [("nix/x.csv", "create it first"), ("s3://bucket", "names no object"), ("s3://", "names no object")],
)
def test_an_output_that_cannot_be_written_is_named(tmp_path: Path, output: str, said: str) -> None:
    done, _ = export("--output", output if "://" in output else str(tmp_path / output))
    assert done.exit_code != 0
    assert said in done.stderr


def test_an_object_is_put_as_a_whole(tmp_path: Path) -> None:
    done, _ = export("--output", f"file://{tmp_path}/x.csv")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "x.csv").read_text() == "a,b\n"
