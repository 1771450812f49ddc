"""An emulator of Extend behind Everyrun: the tests call Everyrun's drop-in endpoint, and see the emulator behind it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg

from everyrun.embedded.webhook import register_webhook
from everyrun.log import topics
from everyrun.settings import Settings
from everyrun.store.tokens import digest
from tests.conftest import free_port
from tests.contract.conftest import KEY, WORKFLOW, EmulatorProcess
from tests.integration.services import ServiceProcess

#: A token of Everyrun that is not the one of the tests, and has every scope.
BOOTSTRAP = "everyrun-token-of-the-tests"


def now(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, even if the caller's own event loop is running."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, work).result()


class DropIn:
    """Everyrun's services in front of an emulator. ``url`` is the address of the drop-in endpoint."""

    def __init__(self, folder: Path, kafka: str, postgres: Callable[[str], str], *options: str, **env: object) -> None:
        self.name = f"d{uuid.uuid4().hex[:12]}"
        self.settings = Settings(kafka_bootstrap=kafka, postgres_dsn=postgres(self.name), topic_prefix=f"{self.name}.")
        self._admin = postgres("everyrun")
        self._folder = folder
        (folder / "state").mkdir()
        self.emulator = EmulatorProcess(folder / "state", *options)
        self.kill, self.start, self.truth = self.emulator.kill, self.emulator.start, self.emulator.truth
        self._variables = {
            "EVERYRUN_EXTEND_BASE_URL": self.emulator.url,
            "EXTEND_API_KEY": KEY,
            "EVERYRUN_API_TOKEN": BOOTSTRAP,
            "EVERYRUN_DROPIN_WAIT": 25,
            "EVERYRUN_PLAN": options[options.index("--plan") + 1] if "--plan" in options else "enterprise",
            **env,
        }
        self.services: list[ServiceProcess] = []
        self.url = self.second = ""
        now(self._prepare())

    async def _prepare(self) -> None:
        """Make the database and the topics, and a token whose text is the key that the contract tests use."""
        admin = await asyncpg.connect(self._admin)
        await admin.execute(f"create database {self.name} template template_everyrun")
        await admin.close()
        await topics.create(self.settings)
        connection = await asyncpg.connect(self.settings.postgres_dsn.get_secret_value())
        await connection.execute(
            "insert into everyrun_queue.tokens (token_id, name, hash, scopes, created_at, created_by) "
            "values ($1, 'tests', $2, '{submit,read,operate}', now(), 'tests')",
            KEY.rpartition("_")[0],
            digest(KEY),
        )
        await connection.close()

    def add(self, name: str, **env: object) -> ServiceProcess:
        """Start a service. Each submission service serves the drop-in endpoint at a port of its own."""
        port = free_port()
        if name == "submission":
            env = {"EVERYRUN_DROPIN_LISTEN": f"127.0.0.1:{port}", **env}
            self.url = f"http://127.0.0.1:{port}"
        service = ServiceProcess(name, self._folder, self.settings, **{**self._variables, **env})
        self.services.append(service)
        return service

    def run(self, *, tables: bool) -> DropIn:
        """Start the submission service, and with ``tables`` also what fills the result tables."""
        self.add("submission")
        if tables:
            port = free_port()
            hook = f"http://127.0.0.1:{port}/webhooks/extend"
            secret = now(register_webhook(self.emulator.url, KEY, WORKFLOW, hook, 131_072))
            bridge = self.add("bridge", EVERYRUN_BRIDGE_LISTEN=f"127.0.0.1:{port}", EVERYRUN_WEBHOOK_SECRETS=secret)
            bridge.url = f"http://127.0.0.1:{port}"
            self.add("processor")
        self.until_ready()
        return self

    def until_ready(self) -> None:
        for service in self.services:
            now(service.ready())

    async def execute(self, statement: str, *values: object) -> list[asyncpg.Record]:
        """Return the rows of a statement in the installation's database."""
        connection = await asyncpg.connect(self.settings.postgres_dsn.get_secret_value())
        try:
            return await connection.fetch(statement, *values)
        finally:
            await connection.close()

    def end(self) -> None:
        """Kill everything, and drop the database."""
        for service in self.services:
            service.kill()
        self.kill()
        now(self._drop())

    async def _drop(self) -> None:
        admin = await asyncpg.connect(self._admin)
        await admin.execute(f"drop database {self.name} with (force)")
        await admin.close()
