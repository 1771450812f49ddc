"""Run a Kafka, a Postgres and service processes for one benchmark."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import httpx

from everyrun.embedded import process
from everyrun.embedded.kafka import EmbeddedKafka
from everyrun.embedded.postgres import EmbeddedPostgres
from everyrun.embedded.state import free_port
from everyrun.log import topics
from everyrun.settings import Settings
from everyrun.store.migrate import migrate

TOKEN, SECRET = "ert_of_the_benchmarks", "wss_bench"


class Servers:
    """A Kafka and a Postgres during the block. ``settings`` point at them; ``start`` runs a service."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ports: set[int] = set()
        kafka_ports = self.port(), self.port()
        self._kafka = EmbeddedKafka(folder / "kafka", *kafka_ports)
        self._postgres = EmbeddedPostgres(folder / "postgres", self.port(), "bench")
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    def port(self) -> int:
        port = free_port(self._ports)
        self._ports.add(port)
        return port

    async def __aenter__(self) -> Servers:
        await asyncio.gather(asyncio.to_thread(self._kafka.prepare), asyncio.to_thread(self._postgres.prepare))
        env = dict(os.environ)
        self.children["kafka"] = process.start(self._kafka.command(), log=self.folder / "kafka.log", env=env)
        self.children["postgres"] = process.start(
            self._postgres.command(), log=self.folder / "postgres.log", env=env, user=self._postgres.user, cwd=Path("/")
        )
        self.settings = Settings(
            kafka_bootstrap=self._kafka.bootstrap, postgres_dsn=self._postgres.dsn(), api_token=TOKEN
        )
        await until(self._answer, 60)
        await topics.create(self.settings)
        await asyncio.to_thread(migrate, self._postgres.dsn())
        return self

    async def _answer(self) -> bool:
        try:
            await self._postgres.make_database()
            await topics.cluster_id(self.settings)
        except Exception:
            return False
        return True

    async def __aexit__(self, *_: object) -> None:
        for child in reversed(self.children.values()):
            process.signal_group(child, signal.SIGKILL)
            child.wait()

    @property
    def dsn(self) -> str:
        return self._postgres.dsn()

    async def connect(self) -> asyncpg.Connection:
        return await asyncpg.connect(self.dsn)

    def spawn(self, name: str, command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start a Python process, which ends with the block."""
        child = process.start([sys.executable, *command], log=self.folder / f"{name}.log", env={**os.environ, **env})
        self.children[name] = child
        return child

    async def start(self, name: str, **more: str) -> str:
        """Start a service, wait until it is ready, and return its address."""
        port = self.port()
        env = {
            "EVERYRUN_KAFKA_BOOTSTRAP": self.settings.kafka_bootstrap,
            "EVERYRUN_POSTGRES_DSN": self.dsn,
            "EVERYRUN_API_TOKEN": TOKEN,
            "EVERYRUN_WEBHOOK_SECRETS": SECRET,
            "EXTEND_API_KEY": "sk_bench",
            "EVERYRUN_EXTEND_BASE_URL": "http://127.0.0.1:1",
            "EVERYRUN_DATA_DIR": str(self.folder),
            "EVERYRUN_TOPIC_PREFIX": self.settings.topic_prefix,
            f"EVERYRUN_{name.upper()}_LISTEN": f"127.0.0.1:{port}",
            **more,
        }
        self.spawn(name, ["-m", f"everyrun.{name}"], env)
        url = f"http://127.0.0.1:{port}"
        await until(lambda: ready(url), 60)
        return url

    def stop(self, name: str) -> None:
        """End a process that was started here."""
        child = self.children.pop(name)
        child.terminate()
        child.wait()


async def ready(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        async with httpx.AsyncClient() as http:
            return (await http.get(url + "/readyz")).status_code == 200
    return False


async def until(condition, seconds: float) -> None:
    """Wait until an asynchronous condition is true. Raises AssertionError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"the condition was not true after {seconds} s"
        await asyncio.sleep(0.02)


def row(name: str, figure: float, ceiling: float, unit: str, target: str) -> tuple[str, str, str, str, str]:
    """Return a row of the table."""
    return name, f"{figure:,.0f} {unit}", f"{ceiling:,.0f} {unit}", f"{figure / ceiling:.2f}", target
