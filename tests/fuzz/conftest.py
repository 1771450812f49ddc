"""Fixtures for fuzzing: submission, bridge, processor and query as processes, on a real Kafka and Postgres."""

from __future__ import annotations

import itertools
import os
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg
import httpx
import hypothesis
import pytest
from hypothesis.strategies import SearchStrategy
from pydantic import SecretStr

from everyrun.log import topics
from everyrun.settings import Settings
from tests.conftest import free_port
from tests.integration.services import ServiceProcess

T = TypeVar("T")

#: Minutes of the long form (``make fuzz MINUTES=10``); the short form has a fixed number of examples and one seed.
MINUTES = float(os.environ.get("EVERYRUN_FUZZ_MINUTES", "0"))
#: The number of calls of :func:`fuzz`, which share the minutes.
FUZZERS = 11

TOKEN = "planted-token-of-the-fuzzers"
SECRET = "wss_planted-secret-of-the-fuzzers"
KEY = "sk_planted-key-of-the-fuzzers"
SECRETS = (TOKEN, SECRET, KEY)


def fuzz(strategy: SearchStrategy[T], try_out: Callable[[T], None], examples: int) -> None:
    """Call ``try_out`` with fixed examples; in the long form, with new ones until the time of this fuzzer is up."""
    ends = time.monotonic() + MINUTES * 60 / FUZZERS
    for turn in itertools.count():
        number = random.randrange(1 << 32) if MINUTES else 0

        @hypothesis.seed(number)
        @hypothesis.settings(
            max_examples=max(examples, 100) if MINUTES else examples,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(strategy)
        def body(given: T) -> None:
            try_out(given)

        body()
        if time.monotonic() >= ends:
            print(f"{turn + 1} rounds")
            return


@dataclass
class World:
    """The services under test, the database and the settings."""

    services: dict[str, ServiceProcess]
    dsn: str
    settings: Settings

    def url(self, name: str) -> str:
        return self.services[name].url

    def check(self, status: int, text: str) -> None:
        """Check that an answer is no server error, and shows neither a traceback nor a secret."""
        assert status < 500, (status, text[:2000])
        assert "Traceback" not in text
        assert not [secret for secret in SECRETS if secret in text]

    def check_logs(self) -> None:
        """Check that every service runs, and that no log shows an unhandled error or a secret."""
        for name, service in self.services.items():
            assert service.process.poll() is None, f"{name} has ended: {service.log.read_text()[-3000:]}"
            text = service.log.read_text()
            for sign in ("Exception in ASGI", "a webhook was not accepted", *SECRETS):
                start = text.find(sign)
                assert start < 0, f"{name}: {text[start : start + 3000]}"


@pytest.fixture(scope="session")
async def world(
    kafka: str, postgres: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("fuzz")
    name = "f" + uuid.uuid4().hex[:12]
    admin = await asyncpg.connect(postgres("everyrun"))
    await admin.execute(f"create database {name} template template_everyrun")
    dsn = postgres(name)
    settings = Settings(kafka_bootstrap=kafka, postgres_dsn=SecretStr(dsn), topic_prefix=f"{name}.")
    await topics.create(settings)
    given: dict[str, Any] = {
        "EVERYRUN_API_TOKEN": TOKEN,
        "EVERYRUN_WEBHOOK_SECRETS": SECRET,
        "EXTEND_API_KEY": KEY,
        # Nothing listens there, so accepted inputs wait.
        "EVERYRUN_EXTEND_BASE_URL": f"http://127.0.0.1:{free_port()}",
        "EVERYRUN_DATA_DIR": folder / "data",
    }
    names = ("submission", "bridge", "processor", "query")
    services = {name: ServiceProcess(name, folder, settings, **given) for name in names}
    try:
        for service in services.values():
            await service.ready()
        yield World(services, dsn, settings)
    finally:
        for service in services.values():
            service.kill()
        await admin.execute(f"drop database {name} with (force)")
        await admin.close()


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    """Return a client that sends the token."""
    with httpx.Client(headers={"authorization": f"Bearer {TOKEN}"}, timeout=60) as client:
        yield client
