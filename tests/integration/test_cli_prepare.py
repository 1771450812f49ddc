"""``everyrun topics`` and ``everyrun migrate``, against a Kafka and a Postgres that nothing is made in."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable

import asyncpg
import pytest

pytestmark = pytest.mark.stack


def everyrun(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("EVERYRUN_")}
    command = [sys.executable, "-c", "from everyrun.cli.app import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**plain, **env}, check=False)


def test_topics_are_missing_then_created_then_right(kafka: str) -> None:
    env = {"EVERYRUN_KAFKA_BOOTSTRAP": kafka, "EVERYRUN_TOPIC_PREFIX": f"t{uuid.uuid4().hex[:8]}."}
    missing = everyrun("topics", "check", **env)
    assert missing.returncode == 1
    assert (
        f"topic {env['EVERYRUN_TOPIC_PREFIX']}batches is missing. Create the topics: everyrun topics create."
        in missing.stderr
    )
    made = everyrun("topics", "create", **env)
    assert made.returncode == 0
    assert "batches, runs, deliveries, results, reports, quarantine" in made.stderr
    assert everyrun("topics", "check", **env).returncode == 0
    assert "already" in everyrun("topics", "create", **env).stderr


async def test_migrate_makes_both_schemas(postgres: Callable[[str], str]) -> None:
    name = f"t{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(postgres("everyrun"))
    await admin.execute(f"create database {name}")
    try:
        assert everyrun("migrate", EVERYRUN_POSTGRES_DSN=postgres(name)).returncode == 0
        connection = await asyncpg.connect(postgres(name))
        assert await connection.fetchval("select count(*) from everyrun.results") == 0
        assert await connection.fetchval("select count(*) from everyrun_queue.schema_migrations") > 0
        await connection.close()
    finally:
        await admin.execute(f"drop database {name} with (force)")
        await admin.close()


@pytest.mark.parametrize(
    ("command", "variable"),
    [(("topics", "create"), "EVERYRUN_KAFKA_BOOTSTRAP"), (("migrate",), "EVERYRUN_POSTGRES_DSN")],
)
def test_a_missing_setting_is_named(command: tuple[str, ...], variable: str) -> None:
    refused = everyrun(*command)
    assert refused.returncode == 1
    assert f"{variable} is not set" in refused.stderr
