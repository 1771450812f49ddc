"""Start the parts of a stack in the right order, and stop them. ``everyrun up`` and ``everyrun demo`` use this.

This module has over 300 lines, because one class starts and stops every part: the order of the steps is in one place.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
from aiokafka.errors import KafkaError
from pydantic import SecretStr

from everyrun.embedded import parts, ready
from everyrun.embedded.kafka import EmbeddedKafka
from everyrun.embedded.part import Ask, OnEvent, Part
from everyrun.embedded.parts import Options
from everyrun.embedded.postgres import STOP_SIGNAL, EmbeddedPostgres
from everyrun.embedded.process import check_platform
from everyrun.embedded.state import FolderLock, StackError, load_state, write_private
from everyrun.embedded.webhook import register_webhook
from everyrun.extend import installation_binding
from everyrun.log import topics
from everyrun.redact import describe
from everyrun.settings import Settings, SettingsError, load
from everyrun.store.migrate import MigrationError, migrate

__all__ = ["Options", "Stack"]

_BASES = ("kafka", "postgres", "emulator")
#: Seconds after which services that have not stopped are killed, and the same for Kafka, Postgres and the emulator,
#: which are stopped after the services. The sum is less than the 20 s for which ``everyrun down`` waits.
_SERVICES_STOP, _BASES_STOP = 9.0, 4.5
#: Settings for a stack that starts its own servers, even if the environment names others.
_OWN_SERVERS = {"kafka_bootstrap": "", "postgres_dsn": "", "kafka_security_protocol": "PLAINTEXT"}


def _quiet(_part: str, _what: str, _seconds: float) -> None:
    pass


class Stack:
    """A running stack, as an async context manager. Every part is ready inside the block and stopped after it.

    Enter the context in the main thread. Raises StackError, SettingsError or PlatformError if the stack cannot start.
    A busy port or a locked folder is reported before anything is started.
    """

    def __init__(self, options: Options, on_event: OnEvent = _quiet) -> None:
        self._options = options
        self._on_event = on_event
        self._folder = options.data_dir.resolve()
        self._lock = FolderLock(self._folder)
        #: The services wait until this file exists (see everyrun.embedded.held).
        self._gate = self._folder / "ready"
        self._began = 0.0
        self._parts: dict[str, Part] = {}
        self._watching: list[asyncio.Task[None]] = []
        self._state: dict[str, Any] = {}
        self._settings = load() if options.servers_of_environment else load(**_OWN_SERVERS)
        self.endpoints: dict[str, str] = {}

    @property
    def data_dir(self) -> Path:
        """Return the stack's data folder, as an absolute path."""
        return self._folder

    @property
    def names(self) -> list[str]:
        """Return the names of the stack's parts."""
        return list(self._parts)

    def part(self, name: str) -> Part:
        """Return a part by its name, for example kafka, postgres, emulator, bridge or processor-0."""
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
        protocol = self._settings.kafka_security_protocol
        if protocol != "PLAINTEXT" and not self._settings.kafka_bootstrap:
            raise StackError(
                f"EVERYRUN_KAFKA_SECURITY_PROTOCOL is {protocol}, but the embedded Kafka supports PLAINTEXT only. "
                "Name your own Kafka with EVERYRUN_KAFKA_BOOTSTRAP, or unset the protocol."
            )
        if self._options.extend:
            try:
                self._settings.need("extend_api_key", "webhook_secrets")
            except SettingsError as error:
                raise StackError(str(error)) from None

    async def _up(self) -> None:
        (self._folder / "endpoints.json").unlink(missing_ok=True)
        self._gate.unlink(missing_ok=True)
        own_kafka = not self._settings.kafka_bootstrap
        dsn = self._settings.postgres_dsn.get_secret_value()
        names = parts.ports_needed(self._options, own_kafka=own_kafka, own_postgres=not dsn)
        self._state = load_state(self._folder, names)
        self._began = time.monotonic()
        ports = self._state["ports"]
        kafka = EmbeddedKafka(self._folder / "kafka", ports["kafka"], ports["kafka-controller"]) if own_kafka else None
        postgres = None
        if not dsn:
            postgres = EmbeddedPostgres(self._folder / "postgres", ports["postgres"], self._state["postgres_password"])
        self.endpoints = {
            "kafka_bootstrap": kafka.bootstrap if kafka is not None else self._settings.kafka_bootstrap,
            "postgres_dsn": postgres.dsn() if postgres is not None else dsn,
        }
        self._watching.append(asyncio.create_task(self._keep_status()))
        services, _, _ = await _together(self._early_services(), self._kafka(kafka), self._postgres(postgres))
        await self._check_binding()
        self._gate.touch()
        await _together(*(self._ready(part) for part in services))
        self._write_endpoints()
        if kafka is not None:
            self._watching.append(asyncio.create_task(kafka.archive_classes()))

    async def _early_services(self) -> list[Part]:
        """Start the emulator, then the services, and return the services.

        The services import their modules at once, but run only when the gate exists.
        """
        if not self._options.extend:
            command = parts.emulator_command(self._folder, self._state, self._options)
            await self._start(self._add_http("emulator", command))
            if self._state["webhook_secret"] is None:
                await self._register()
        self.endpoints["webhook_secret"] = self._webhook_secrets()
        services = [self._service(name) for name in (*self._options.services, *parts.processors(self._options))]
        for part in services:
            part.start()
        return services

    async def _kafka(self, server: EmbeddedKafka | None) -> None:
        """Start the stack's own Kafka, if it has one, and create the topics."""
        if server is not None:
            await _in_thread(server.prepare)
            ask = ready.kafka(self._service_settings(), self._state["ports"]["kafka"])
            await self._start(self._add("kafka", server.command(), ask))
        try:
            await topics.create(self._service_settings())
        except (KafkaError, OSError) as error:
            raise StackError(
                f"cannot create the topics at {self.endpoints['kafka_bootstrap']}: {describe(error)}"
            ) from None

    async def _postgres(self, server: EmbeddedPostgres | None) -> None:
        """Start the stack's own Postgres, if it has one, and bring the tables up to date."""
        if server is not None:
            await _in_thread(server.prepare)
            how: dict[str, Any] = {"user": server.user, "cwd": Path("/"), "stop_signal": STOP_SIGNAL}
            await self._start(self._add("postgres", server.command(), ready.postgres(server), **how))
        try:
            await _in_thread(lambda: migrate(self.endpoints["postgres_dsn"]))
        except MigrationError as error:
            raise StackError(f"cannot bring the database up to date: {error}") from None

    def _service(self, name: str) -> Part:
        env = parts.service_env(name, self._folder, self._state, self._options, self.endpoints)
        return self._add_http(name, parts.service_command(name, self._gate), env=env)

    def _add_http(self, name: str, command: list[str], **more: Any) -> Part:
        url = parts.url(self._state, name)
        return self._add(name, command, ready.http(url), url=url, **more)

    def _add(self, name: str, command: list[str], ask: Ask, **more: Any) -> Part:
        how = {"folder": self._folder, "port": self._state["ports"][name], "most_backoff": self._options.most_backoff}
        part = Part(name, command, ask=ask, **how, **more)
        self._parts[name] = part
        return part

    def _service_settings(self) -> Settings:
        return self._settings.model_copy(update={"kafka_bootstrap": self.endpoints["kafka_bootstrap"]})

    async def _check_binding(self) -> None:
        """Raise StackError if the installation is bound to another Extend, because its services would wait forever."""
        url = self._settings.extend_base_url if self._options.extend else parts.url(self._state, "emulator")
        dsn = SecretStr(self.endpoints["postgres_dsn"])
        problem = await installation_binding.problem(
            self._settings.model_copy(update={"extend_base_url": url, "postgres_dsn": dsn})
        )
        if problem is not None:
            raise StackError(problem)

    def _webhook_secrets(self) -> str:
        given = [secret.get_secret_value() for secret in self._settings.webhook_secrets]
        if self._options.extend:
            return ",".join(given)
        # A demo or a test ignores the webhook secrets in the environment.
        return parts.webhook_secrets(self._state, given if self._options.servers_of_environment else ())

    async def _register(self) -> None:
        """Create the webhook endpoint and its subscription at the emulator, and store the endpoint's secret."""
        try:
            self._state["webhook_secret"] = await register_webhook(
                parts.url(self._state, "emulator"),
                self._state["extend_api_key"],
                self._state["workflow_id"],
                f"{parts.url(self._state, 'bridge')}/webhooks/extend",
                self._options.link_over,
            )
        except httpx.HTTPError as error:
            raise StackError(f"cannot create the webhook endpoint at the emulator: {error}") from None
        write_private(self._folder / "stack.json", self._state)

    async def _start(self, part: Part) -> None:
        part.start()
        await self._ready(part)

    async def _ready(self, part: Part) -> None:
        """Wait until the part is ready. From then on, a task restarts the part whenever it dies."""
        try:
            await part.wait_ready()
        except (ChildProcessError, TimeoutError) as error:
            raise StackError(str(error)) from None
        self._on_event(part.name, "ready", time.monotonic() - self._began)
        self._watching.append(asyncio.create_task(part.watch(self._on_event)))

    def _write_endpoints(self) -> None:
        real = self._options.extend
        emulator = "" if real else parts.url(self._state, "emulator")
        self.endpoints |= {
            **{f"{name}_url": parts.url(self._state, name) for name in parts.SERVICES},
            "processor_urls": ",".join(parts.url(self._state, name) for name in parts.processors(self._options)),
            "dropin_url": parts.url(self._state, "dropin"),
            "emulator_url": emulator,
            "api_token": self._state["api_token"],
            "extend_api_key": self._settings.extend_api_key.get_secret_value()
            if real
            else self._state["extend_api_key"],
            "extend_base_url": self._settings.extend_base_url if real else emulator,
            "workflow_id": "" if real else self._state["workflow_id"],
        }
        write_private(self._folder / "endpoints.json", self.endpoints)

    async def _keep_status(self) -> None:
        """Keep ``status.json``, which ``everyrun status`` reads, up to date."""
        written: list[dict[str, Any]] = []
        while True:
            rows = [part.row() for part in self._parts.values()]
            if rows != written:
                write_private(self._folder / "status.json", rows)
                written = rows
            await asyncio.sleep(0.2)

    async def _down(self) -> None:
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        for name in ("endpoints.json", "status.json", self._gate.name):
            (self._folder / name).unlink(missing_ok=True)
        services = [part for name, part in self._parts.items() if name not in _BASES]
        await asyncio.gather(*(part.stop(_SERVICES_STOP) for part in services))
        bases = [part for name, part in self._parts.items() if name in _BASES]
        await asyncio.gather(*(part.stop(_BASES_STOP) for part in bases))
        self._lock.release()


async def _together(*works: Coroutine[Any, Any, Any]) -> list[Any]:
    """Run coroutines concurrently and return their results. If one fails, cancel the others, and raise its error."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _in_thread(work: Callable[[], None]) -> None:
    """Run blocking work in a thread. On cancellation, abandon the thread: a download must not delay the exit."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finish(error: Exception | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: Exception | None = None
        try:
            work()
        except Exception as raised:
            error = raised
        # If the caller was cancelled, the event loop may be closed by now.
        with contextlib.suppress(RuntimeError):
            done.get_loop().call_soon_threadsafe(finish, error)

    threading.Thread(target=run, daemon=True).start()
    await done
