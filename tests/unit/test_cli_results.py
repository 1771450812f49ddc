"""``everyrun results`` writes CSV for spreadsheets, and manifests that can be submitted again."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx

from everyrun.cli import exits
from everyrun.cli.extracted import column_names, flatten
from tests.unit.cli import QUERY, everyrun, page


def step(name: str, value: Any) -> dict[str, Any]:
    return {"step": {"name": name}, "result": {"extractRun": {"output": {"value": value}}}}


ROWS: list[dict[str, Any]] = [
    {
        "external_id": "a",
        "status": "PROCESSED",
        "file": {"url": "https://e.com/a.pdf"},
        "metadata": {"n": 1},
        "run": {
            "stepRuns": [
                step("Extract", {"total": 12.5, "vendor": {"name": "M\u00fcller", "id": None}, "lines": [{"x": 1}]}),
                step("Extract", {"total": 1}),
            ]
        },
    },
    {
        "external_id": "b",
        "status": "FAILED",
        "file": {"url": "https://e.com/b.pdf", "redacted": True},
        "run": {"stepRuns": [step("Extract", {"paid": True, "total": ""})]},
    },
    {"external_id": "c", "status": "REFUSED", "file": {"id": "file_1"}, "run": None},
]


def results(*options: str, rows: list[dict[str, Any]] = ROWS) -> Any:
    with respx.mock(assert_all_called=False) as router:
        router.get(url__regex=f"{QUERY}/v1/submissions/sub_1/.*").respond(json={})
        router.get(f"{QUERY}/v1/results").mock(return_value=page("results", rows))
        return everyrun("results", "sub_1", *options)


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_extracted_values_have_a_column_each() -> None:
    done = results("--format", "csv", "--extracted")
    assert done.exit_code == 0, done.output
    one, two, three = table(done.stdout)
    assert (one["id"], one["Extract.total"], one["Extract (2).total"]) == ("a", "12.5", "1")
    assert (one["Extract.vendor.name"], one["Extract.vendor.id"]) == ("M\u00fcller", "")
    assert one["Extract.lines"] == '[{"x": 1}]'
    assert (two["Extract.paid"], two["Extract.total"], two["Extract.vendor.name"]) == ("true", "", "")
    assert (three["id"], three["Extract.total"]) == ("c", "")


def test_column_names_are_unique() -> None:
    paths = list(flatten({"": {"a": {"b": 1}, "a.b": 2}, "status": 3}))
    assert column_names(paths, ["status"]) == ["extracted.a.b", "extracted.a.b (2)", "status (2)"]


@pytest.mark.parametrize("extracted", [[], ["--extracted"]])
def test_byte_order_mark_is_written_if_requested(extracted: list[str]) -> None:
    assert results("--format", "csv", "--bom", *extracted).stdout.startswith("\ufeffid,")
    assert results("--format", "csv", *extracted).stdout.startswith("id,")


def test_redacted_links_are_refused_until_they_are_replaced(tmp_path: Path) -> None:
    done = results("--format", "csv", "--extracted")
    again = tmp_path / "again.csv"
    again.write_text(done.stdout)
    refused = everyrun("submit", str(again), "--dry-run")
    assert refused.exit_code == exits.ERROR
    assert "1 bad row;" in refused.output
    assert "give a new link" in refused.output
    again.write_text(done.stdout.replace("https://e.com/b.pdf#everyrun-redacted", "https://e.com/b.pdf?sig=2"))
    accepted = everyrun("submit", str(again), "--dry-run")
    assert accepted.exit_code == 0, accepted.output
    # Columns of Everyrun itself, like the status, are left out silently.
    assert "Left out: the columns Extract.total" in accepted.output
    assert "status" not in accepted.output


def test_redacted_links_in_jsonl_are_refused(tmp_path: Path) -> None:
    done = results("--format", "jsonl", rows=[{"id": "b", "file": ROWS[1]["file"]}])
    (tmp_path / "again.jsonl").write_text(done.stdout)
    refused = everyrun("submit", str(tmp_path / "again.jsonl"), "--dry-run")
    assert "give a new link" in refused.output


@pytest.mark.parametrize(("given", "meant"), [("FAILD", "FAILED"), ("procesed", "PROCESSED")])
def test_a_status_that_is_written_otherwise_is_suggested(given: str, meant: str) -> None:
    done = results("--status", given)
    assert done.exit_code == exits.USAGE
    assert f"Unknown status '{given}'; did you mean {meant}?" in done.output
    assert results("--status", "FAILED").exit_code == 0


def test_a_known_status_may_be_written_in_any_case() -> None:
    with respx.mock(assert_all_called=False) as router:
        router.get(url__regex=f"{QUERY}/v1/submissions/sub_1/.*").respond(json={})
        asked = router.get(f"{QUERY}/v1/results").mock(return_value=page("results", ROWS[:1]))
        assert everyrun("results", "sub_1", "--status", "failed").exit_code == 0
    assert asked.calls[0].request.url.params["status"] == "FAILED"


def test_results_of_a_folder_that_does_not_exist_say_so(tmp_path: Path) -> None:
    done = results("--format", "csv", "--output", str(tmp_path / "nix" / "x.csv"))
    assert done.exit_code == 1
    assert f"the folder {tmp_path / 'nix'} does not exist; create it first" in done.output


def test_inputs_without_a_result_say_what_they_wait_for() -> None:
    waits = {
        "inputs": 1,
        "status": "WAITING",
        "reason": "the workflow is paused",
        "what_to_do": "everyrun workflow resume w",
    }
    with respx.mock(assert_all_called=False) as router:
        router.get(f"{QUERY}/v1/submissions/sub_1/progress").respond(json={"waiting": [waits]})
        router.get(f"{QUERY}/v1/results").mock(return_value=page("results", []))
        done = everyrun("results", "sub_1")
        assert "1 input WAITING: the workflow is paused. You can: everyrun workflow resume w" in done.output
        assert "everyrun report sub_1" in everyrun("results", "sub_1", "--status", "FAILED").output


def broken_after_one(*options: str) -> Any:
    """Run the command on a service that gives a page, and then no more."""
    with respx.mock(assert_all_called=False) as router:
        router.get(url__regex=f"{QUERY}/v1/submissions/sub_1/.*").respond(json={})
        first = httpx.Response(200, json={"results": ROWS[:1], "next_cursor": "more"})
        gone = httpx.Response(404, json={"code": "NOT_FOUND", "message": "the submission is gone"})
        router.get(f"{QUERY}/v1/results").mock(side_effect=[first, gone])
        return everyrun("results", "sub_1", *options)


@pytest.mark.parametrize("options", [["csv"], ["csv", "--extracted"], ["jsonl"]])
def test_a_file_is_written_whole_or_not_at_all(options: list[str], tmp_path: Path) -> None:
    path = tmp_path / "results"
    path.write_text("of yesterday")
    broken = broken_after_one("--format", *options, "--output", str(path))
    assert broken.exit_code == exits.NOT_FOUND, broken.output
    assert path.read_text() == "of yesterday"
    assert results("--format", *options, "--output", str(path)).exit_code == 0
    assert "https://e.com/a.pdf" in path.read_text(encoding="utf-8")
    assert [one.name for one in tmp_path.iterdir()] == ["results"]


def test_a_file_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "such", tmp_path):
        done = results("--format", "csv", "--output", str(path))
        assert done.exit_code == exits.ERROR
        assert done.stderr.count("\n") == 1
        assert str(path) in done.stderr
    assert "--output needs --format" in results("--output", str(tmp_path / "x")).output


def test_filters_are_passed_on_and_names_are_checked() -> None:
    with respx.mock(assert_all_called=False) as router:
        router.get(url__regex=f"{QUERY}/v1/submissions/sub_1/.*").respond(json={})
        asked = router.get(f"{QUERY}/v1/results").mock(return_value=page("results", ROWS[:1]))
        options = (
            "--status",
            "failed",
            "--where",
            "metadata.a=b=c",
            "--where",
            "status=REFUSED",
            "--sort",
            "-position",
        )
        assert everyrun("results", "sub_1", *options).exit_code == 0
    params = asked.calls[0].request.url.params
    assert params.get_list("status") == ["FAILED", "REFUSED"]
    assert (params["metadata.a"], params["sort"]) == ("b=c", "-position")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("metadata.a", "write NAME=VALUE"),
        ("metadata.=1", "and metadata.FIELD"),
        ("reason=x", "failure_reason"),
        ("setled_since=2026-03-03", "did you mean settled_since?"),
    ],
)
def test_a_filter_that_does_not_exist_is_refused(given: str, said: str) -> None:
    done = results("--where", given)
    assert done.exit_code == exits.USAGE
    assert said in done.output
