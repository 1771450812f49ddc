"""A process dies once at an armed failpoint, and nowhere else."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import everyrun
from everyrun.failpoints import POINTS, VARIABLE, done

POINT = "bridge.after_produce"


def run_to_the_point(folder: Path, named: str) -> subprocess.CompletedProcess[str]:
    program = f"from everyrun.failpoints import hit; hit({POINT!r}); print('continued')"
    env = {**os.environ, VARIABLE: named, "EVERYRUN_DATA_DIR": str(folder)}
    return subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)


def test_process_dies_once_at_an_armed_point(tmp_path: Path) -> None:
    named = f"bridge.before_produce,{POINT}"
    assert run_to_the_point(tmp_path, named).returncode == -signal.SIGKILL
    assert done(tmp_path, POINT).exists()
    assert run_to_the_point(tmp_path, named).stdout == "continued\n"
    done(tmp_path, POINT).unlink()
    assert run_to_the_point(tmp_path, named).returncode == -signal.SIGKILL


@pytest.mark.parametrize("named", ["", "bridge.before_produce"])
def test_a_process_survives_points_that_are_not_armed(tmp_path: Path, named: str) -> None:
    assert run_to_the_point(tmp_path, named).stdout == "continued\n"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_point_is_refused(tmp_path: Path) -> None:
    ended = run_to_the_point(tmp_path, "bridge.before_produced")
    assert (ended.returncode, "bridge.before_produced" in ended.stderr) == (1, True)


def test_every_point_is_declared_and_hit_at_one_place() -> None:
    source = Path(everyrun.__file__).parent
    hit = [point for path in source.rglob("*.py") for point in re.findall(r'hit\("([\w.]+)"\)', path.read_text())]
    assert sorted(hit) == sorted(POINTS)
