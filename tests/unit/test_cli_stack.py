"""The stack's commands where there is no stack, and called wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from everyrun.cli.app import app

run = CliRunner().invoke


@pytest.mark.parametrize("command", ["status", "down"])
def test_no_stack_is_said_so(tmp_path: Path, command: str) -> None:
    answer = run(app, [command, "--data-dir", str(tmp_path)])
    assert answer.exit_code == 4
    assert "no stack runs in" in answer.output


def test_the_data_folder_comes_from_the_environment(tmp_path: Path) -> None:
    answer = run(app, ["status"], env={"EVERYRUN_DATA_DIR": str(tmp_path / "elsewhere")})
    assert "elsewhere" in answer.output.replace("\n", "")


def test_a_log_of_no_part_names_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "bridge.log").write_text("one\ntwo\nthree\n")
    answer = run(app, ["logs", "brigde", "--data-dir", str(tmp_path)])
    assert answer.exit_code == 4
    assert "the logs are: bridge" in answer.output
    answer = run(app, ["logs", "bridge", "--data-dir", str(tmp_path), "-n", "2"])
    assert answer.exit_code == 0
    assert answer.output == "two\nthree\n"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--faults", "dorp=1"], "dorp"),
        (["--faults", "drop=2"], "drop"),
        (["--run-seconds", "soon"], "soon"),
        (["--plan", "free"], "free"),
        (["--processors", "0"], "processors"),
    ],
)
def test_wrong_options_are_named_before_anything_starts(tmp_path: Path, flags: list[str], says: str) -> None:
    answer = run(app, ["up", "--data-dir", str(tmp_path / "data"), *flags])
    assert answer.exit_code == 2
    assert says in answer.output
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("command", ["up", "down", "status", "logs"])
def test_help_has_an_example(command: str) -> None:
    answer = run(app, [command, "--help"])
    assert answer.exit_code == 0
    assert f"everyrun {command}" in answer.output
