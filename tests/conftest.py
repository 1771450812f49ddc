"""Fixtures: a real Kafka and a real Postgres for the session, and a separate database and topics for each test."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from everyrun import redact
from everyrun.embedded import process
from everyrun.embedded.kafka import EmbeddedKafka
from everyrun.embedded.postgres import EmbeddedPostgres
from everyrun.embedded.state import free_port
from everyrun.log import topics as log_topics
from everyrun.settings import Settings
from everyrun.store.migrate import migrate


async def eventually(condition: Callable[[], object], what: str, seconds: float = 30.0) -> object:
    """Wait until a function or coroutine function returns something true, and return it; fail and name ``what``."""
    deadline = time.monotonic() + seconds
    while True:
        outcome = condition()
        if asyncio.iscoroutine(outcome):
            outcome = await outcome
        if outcome:
            return outcome
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.05)


@pytest.fixture(autouse=True)
def clean_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what settings.load() and the console script leave in the process: remembered secrets and a log handler.

    The handler writes to the test's standard error, which is closed after the test. A later line, such as asyncio's of
    a task that was never awaited, would then print a traceback wherever the garbage collector happens to run.
    """
    monkeypatch.setattr(redact, "_known", set())
    monkeypatch.setattr(redact, "_exact", None)
    yield
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if type(handler) is logging.StreamHandler]:
        root.removeHandler(handler)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EmbeddedKafka, EmbeddedPostgres]]:
    folder = tmp_path_factory.mktemp("servers")
    kafka = EmbeddedKafka(folder / "kafka", free_port(), free_port())
    postgres = EmbeddedPostgres(folder / "postgres", free_port(), "secret")
    kafka.prepare()
    postgres.prepare()
    started = [
        process.start(kafka.command(), log=folder / "kafka.log", env=os.environ),
        process.start(
            postgres.command(), log=folder / "postgres.log", env=os.environ, user=postgres.user, cwd=Path("/")
        ),
    ]
    try:
        yield kafka, postgres
    finally:
        for child in started:
            child.kill()
            child.wait()


@pytest.fixture(scope="session")
async def kafka(servers: tuple[EmbeddedKafka, EmbeddedPostgres]) -> str:
    """Return host:port of a running Kafka."""
    bootstrap = servers[0].bootstrap

    async def answers() -> bool:
        try:
            await log_topics.cluster_id(Settings(kafka_bootstrap=bootstrap))
        except Exception:
            return False
        return True

    await eventually(answers, "Kafka answers", 60)
    return bootstrap


@pytest.fixture(scope="session")
async def postgres(servers: tuple[EmbeddedKafka, EmbeddedPostgres]) -> Callable[[str], str]:
    """Return a function that gives the dsn of a database by its name, with the owner's rights."""

    async def answers() -> bool:
        try:
            await servers[1].make_database()
        except (OSError, asyncpg.PostgresError):
            return False
        return True

    await eventually(answers, "Postgres answers", 30)
    dsn = servers[1].dsn("everyrun")
    connection = await asyncpg.connect(dsn)
    await connection.execute("create database template_everyrun")
    await connection.close()
    await asyncio.to_thread(migrate, servers[1].dsn("template_everyrun"))
    return servers[1].dsn


@pytest.fixture
async def database(postgres: Callable[[str], str]) -> AsyncIterator[str]:
    """Return the dsn of a new, migrated database."""
    name = "t" + uuid.uuid4().hex[:12]
    admin = await asyncpg.connect(postgres("everyrun"))
    await admin.execute(f"create database {name} template template_everyrun")
    yield postgres(name)
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


@pytest.fixture
async def settings(kafka: str, database: str) -> Settings:
    """Return settings with a new database, and with topics under a new prefix."""
    settings = Settings(kafka_bootstrap=kafka, postgres_dsn=database, topic_prefix=f"t{uuid.uuid4().hex[:8]}.")
    await log_topics.create(settings)
    return settings
