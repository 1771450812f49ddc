"""The stack: every part, brought up in order and taken down again. ``everyrun up`` and ``everyrun demo`` use it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from everyrun.embedded.kafka import EmbeddedKafka
from everyrun.embedded.part import OnEvent, Part
from everyrun.embedded.postgres import EmbeddedPostgres
from everyrun.embedded.process import check_platform
from everyrun.embedded.state import FolderLock, StackError, load_state, write_private
from everyrun.embedded.webhook import register_webhook
from everyrun.log import topics
from everyrun.settings import Settings, SettingsError, load
from everyrun.store.migrate import migrate

_READY_WITHIN = 60.0
_STOP_WITHIN = 4.0
SERVICES = ("submission", "bridge", "reconciler", "query")


@dataclass
class Options:
    """How a stack is to be. ``env`` adds settings for every service."""

    data_dir: Path = Path(".everyrun")
    processors: int = 1
    faults: str = "none"
    seed: int = 1
    run_seconds: str = "0.2:2"
    plan: str = "enterprise"
    extend: bool = False
    env: dict[str, str] = field(default_factory=dict)


def _quiet(_part: str, _what: str, _seconds: float) -> None:
    pass


class Stack:
    """An async context manager: everything is ready inside its block, and stopped after it.

    Raises StackError or PlatformError before anything is started where it cannot be.
    """

    def __init__(self, options: Options, on_event: OnEvent = _quiet) -> None:
        self._options = options
        self._on_event = on_event
        self._folder = options.data_dir.resolve()
        self._lock = FolderLock(self._folder)
        self._parts: dict[str, Part] = {}
        self._watching: list[asyncio.Task[None]] = []
        self._state: dict[str, Any] = {}
        self._settings = load()
        self.endpoints: dict[str, str] = {}

    def part(self, name: str) -> Part:
        """A part by its name: kafka, postgres, emulator, submission, bridge, processor-0, reconciler, query."""
        return self._parts[name]

    async def __aenter__(self) -> Stack:
        check_platform()
        self._check_options()
        self._lock.take()
        try:
            await self._up()
        except BaseException:
            await self._down()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._down()

    def _check_options(self) -> None:
        try:
            if self._options.extend:
                self._settings.need("extend_api_key", "webhook_secrets")
        except SettingsError as error:
            raise StackError(str(error)) from None

    async def _up(self) -> None:
        self._state = load_state(self._folder, self._options.processors)
        (self._folder / "endpoints.json").unlink(missing_ok=True)
        began = time.monotonic()
        kafka, postgres, database = self._bases()
        # In threads: each is a process or a download to wait for.
        prepared = [asyncio.to_thread(base.prepare) for base in (kafka, postgres) if base is not None]
        await asyncio.gather(*prepared)
        if kafka is not None:
            self._add("kafka", kafka.command(), self._kafka_answers)
        if postgres is not None:
            made = self._answers(postgres.make_database)
            self._add("postgres", postgres.command(), made, user=postgres.user, cwd=Path("/"))
        if not self._options.extend:
            self._add_emulator()
        await self._start(list(self._parts.values()), began)
        made_topics = topics.create(self._service_settings())
        await asyncio.gather(made_topics, asyncio.to_thread(migrate, database))
        if not self._options.extend and self._state["webhook_secret"] is None:
            await self._register()
        services = [self._add_service(name) for name in SERVICES]
        services += [self._add_processor(number) for number in range(self._options.processors)]
        await self._start(services, time.monotonic())
        self._write_endpoints()
        self._watching = [asyncio.create_task(part.watch(self._on_event)) for part in self._parts.values()]
        self._watching.append(asyncio.create_task(self._keep_status()))

    def _bases(self) -> tuple[EmbeddedKafka | None, EmbeddedPostgres | None, str]:
        """Our own Kafka and Postgres, where the settings name none; and the database's dsn."""
        ports = self._state["ports"]
        kafka = None
        bootstrap = self._settings.kafka_bootstrap
        if not bootstrap:
            kafka = EmbeddedKafka(self._folder / "kafka", ports["kafka"], ports["kafka-controller"])
            bootstrap = kafka.bootstrap
        postgres = None
        dsn = self._settings.postgres_dsn.get_secret_value()
        if not dsn:
            postgres = EmbeddedPostgres(self._folder / "postgres", ports["postgres"], self._state["postgres_password"])
            dsn = postgres.dsn()
        self.endpoints |= {"kafka_bootstrap": bootstrap, "postgres_dsn": dsn}
        return kafka, postgres, dsn

    def _url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._state['ports'][name]}"

    def _extend_url(self) -> str:
        return self._settings.extend_base_url if self._options.extend else self._url("emulator")

    def _env(self) -> dict[str, str]:
        """The settings of every service."""
        ports = self._state["ports"]
        env = {
            "EVERYRUN_DATA_DIR": str(self._folder),
            "EVERYRUN_KAFKA_BOOTSTRAP": self.endpoints["kafka_bootstrap"],
            "EVERYRUN_POSTGRES_DSN": self.endpoints["postgres_dsn"],
            "EVERYRUN_API_TOKEN": self._state["api_token"],
            "EVERYRUN_EXTEND_BASE_URL": self._extend_url(),
            "EVERYRUN_PLAN": self._options.plan,
        }
        for name in SERVICES:
            env[f"EVERYRUN_{name.upper()}_LISTEN"] = f"127.0.0.1:{ports[name]}"
        if not self._options.extend:
            env["EXTEND_API_KEY"] = self._state["extend_api_key"]
            env["EVERYRUN_WEBHOOK_SECRETS"] = self._state["webhook_secret"] or ""
            env["EVERYRUN_SIGNED_URL_ORIGINS"] = self._url("emulator")
        return {**env, **self._options.env}

    def _service_settings(self) -> Settings:
        return load(
            kafka_bootstrap=self.endpoints["kafka_bootstrap"],
            topic_prefix=self._settings.topic_prefix,
            kafka_replication=self._settings.kafka_replication,
        )

    def _add(self, name: str, command: list[str], ready: Any, **more: Any) -> Part:
        part = Part(name, command, folder=self._folder, port=self._state["ports"][name], ready=ready, **more)
        self._parts[name] = part
        return part

    def _add_emulator(self) -> None:
        o = self._options
        command = [
            sys.executable,
            "-m",
            "everyrun.emulator",
            "--listen",
            f"127.0.0.1:{self._state['ports']['emulator']}",
        ]
        command += ["--state-dir", str(self._folder / "emulator"), "--api-key", self._state["extend_api_key"]]
        command += ["--workflow-id", self._state["workflow_id"], "--seed", str(o.seed), "--run-seconds", o.run_seconds]
        command += ["--plan", o.plan, "--faults", o.faults]
        self._add("emulator", command, self._ready_at("emulator"))

    def _add_service(self, name: str) -> Part:
        return self._add(name, [sys.executable, "-m", f"everyrun.{name}"], self._ready_at(name), env=self._env())

    def _add_processor(self, number: int) -> Part:
        name = f"processor-{number}"
        own = {
            "EVERYRUN_PROCESSOR_INDEX": str(number),
            "EVERYRUN_PROCESSOR_LISTEN": f"127.0.0.1:{self._state['ports'][name]}",
        }
        command = [sys.executable, "-m", "everyrun.processor"]
        return self._add(name, command, self._ready_at(name), env={**self._env(), **own})

    def _ready_at(self, name: str) -> Any:
        async def ready() -> bool:
            with contextlib.suppress(httpx.TransportError):
                async with httpx.AsyncClient(timeout=2) as http:
                    return (await http.get(self._url(name) + "/readyz")).status_code == 200
            return False

        return ready

    @staticmethod
    def _answers(ask: Any) -> Any:
        async def ready() -> bool:
            try:
                await ask()
            except (OSError, asyncpg.PostgresError, TimeoutError):
                return False
            return True

        return ready

    async def _kafka_answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self._state["ports"]["kafka"])
            writer.close()
            await topics.cluster_id(self._service_settings())
        except Exception:
            return False
        return True

    async def _register(self) -> None:
        """The webhook endpoint and the subscription to the workflow, as one makes them at Extend."""
        secret = await register_webhook(
            self._url("emulator"),
            self._state["extend_api_key"],
            self._state["workflow_id"],
            f"{self._url('bridge')}/webhooks/extend",
        )
        self._state["webhook_secret"] = secret
        write_private(self._folder / "stack.json", self._state)

    async def _start(self, parts: list[Part], began: float) -> None:
        for part in parts:
            part.start()

        async def report(part: Part) -> None:
            await part.wait_ready(_READY_WITHIN)
            self._on_event(part.name, "ready", time.monotonic() - began)

        try:
            async with asyncio.TaskGroup() as group:
                for part in parts:
                    group.create_task(report(part))
        except* (ChildProcessError, TimeoutError) as errors:
            raise StackError("\n".join(str(error) for error in errors.exceptions)) from None

    def _write_endpoints(self) -> None:
        secrets = [secret.get_secret_value() for secret in self._settings.webhook_secrets]
        self.endpoints |= {
            "submission_url": self._url("submission"),
            "bridge_url": self._url("bridge"),
            "query_url": self._url("query"),
            "emulator_url": "" if self._options.extend else self._url("emulator"),
            "api_token": self._state["api_token"],
            "webhook_secret": ",".join(secrets) if self._options.extend else self._state["webhook_secret"],
            "extend_api_key": (
                self._settings.extend_api_key.get_secret_value()
                if self._options.extend
                else self._state["extend_api_key"]
            ),
            "extend_base_url": self._extend_url(),
            "workflow_id": "" if self._options.extend else self._state["workflow_id"],
        }
        write_private(self._folder / "endpoints.json", self.endpoints)

    async def _keep_status(self) -> None:
        while True:
            rows = [
                {
                    "part": p.name,
                    "state": p.state,
                    "pid": p.pid,
                    "port": p.port,
                    "since": p.since,
                    "restarts": p.restarts,
                }
                for p in self._parts.values()
            ]
            write_private(self._folder / "status.json", rows)
            await asyncio.sleep(1)

    async def _down(self) -> None:
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        for name in ("endpoints.json", "status.json"):
            (self._folder / name).unlink(missing_ok=True)
        services = [part for name, part in self._parts.items() if name not in ("kafka", "postgres", "emulator")]
        bases = [part for name, part in self._parts.items() if name in ("kafka", "postgres", "emulator")]
        for group in (services, bases):
            await asyncio.gather(*(part.stop(_STOP_WITHIN + (1 if group is services else 0)) for part in group))
        self._lock.release()


def read_endpoints(data_dir: Path) -> dict[str, str] | None:
    """The addresses and keys of a stack that is ready; None where none is."""
    try:
        endpoints: dict[str, str] = json.loads((data_dir / "endpoints.json").read_text())
    except FileNotFoundError:
        return None
    return endpoints


def read_status(data_dir: Path) -> list[dict[str, Any]]:
    """A line a part of a running stack."""
    try:
        rows: list[dict[str, Any]] = json.loads((data_dir / "status.json").read_text())
    except FileNotFoundError:
        return []
    return rows


def default_data_dir() -> Path:
    """EVERYRUN_DATA_DIR, or ./.everyrun."""
    return Path(os.environ.get("EVERYRUN_DATA_DIR", ".everyrun"))
