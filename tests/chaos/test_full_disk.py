"""Postgres and Kafka on a full disk: services report it, accept nothing that they cannot keep, and recover.

The disk is a small tmpfs, so the tests are skipped if none may be mounted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from everyrun.cli import job
from everyrun.embedded import process
from everyrun.embedded.kafka import EmbeddedKafka
from everyrun.log import topics
from everyrun.log.producer import Producer
from everyrun.settings import Settings
from tests.conftest import eventually, free_port
from tests.integration.conftest import read_topic, service
from tests.integration.services import ServiceProcess
from tests.integration.test_backfill import are_as_undisturbed, until_acknowledged
from tests.integration.test_bridge import SECRET, post, webhook
from tests.integration.test_graceful import is_ready, says
from tests.records import run_event

pytestmark = [pytest.mark.stack, pytest.mark.chaos, pytest.mark.timeout(600)]
__all__ = ["service"]
TOKEN = "a-token-of-sixteen-or-more"


class SmallDisk:
    """A small disk that can be filled up and emptied again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Fill the disk to the last byte."""
        with self._ballast.open("ab", buffering=0) as ballast:
            for size in (1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while ballast.write(b"x" * size):
                        pass

    def free_space(self) -> None:
        """Delete the file that filled the disk."""
        self._ballast.unlink()


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[SmallDisk]:
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.asynccontextmanager
async def database_on(disk: SmallDisk, postgres: Callable[[str], str], user: str | None) -> Any:
    """Create a migrated database whose tables lie on the disk, and yield its dsn."""
    location, name = disk.folder / "tables", "d" + uuid.uuid4().hex[:12]
    location.mkdir()
    if user is not None:
        os.chown(location, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    admin = await asyncpg.connect(postgres("everyrun"))
    await admin.execute(f"create tablespace {name} location '{location}'")
    await admin.execute(f"create database {name} tablespace {name} template template_everyrun")
    try:
        yield postgres(name)
    finally:
        await admin.execute(f"drop database {name} with (force)")
        await admin.execute(f"drop tablespace {name}")
        await admin.close()


def large_runs(first: int, count: int) -> list[Any]:
    """Return runs that take up space in a table even if it is compressed."""
    text = [os.urandom(8000).hex() for _ in range(count)]
    return [run_event(f"run_{first + n}", "batch", "PROCESSED", 1, key=None, text=text[n]) for n in range(count)]


async def counted(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval("select count(*) from everyrun.unmatched_runs"))
    finally:
        await connection.close()


async def test_a_full_postgres_accepts_nothing_and_recovers_when_space_is_freed(
    service: Any, servers: Any, settings: Settings, postgres: Callable[[str], str], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        async with database_on(disk, postgres, servers[1].user) as dsn:
            settings.postgres_dsn = type(settings.postgres_dsn)(dsn)
            processor: ServiceProcess = service("processor", EVERYRUN_STALLED_AFTER=3)
            submission: ServiceProcess = service(
                "submission",
                EXTEND_API_KEY="sk_test",
                EVERYRUN_EXTEND_BASE_URL=f"http://127.0.0.1:{free_port()}",
                EVERYRUN_API_TOKEN=TOKEN,
            )
            await processor.ready()
            await submission.ready()
            where = {"submission_url": submission.url, "workflow_id": "workflow"}
            async with (
                Producer(settings) as producer,
                httpx.AsyncClient(headers={"authorization": f"Bearer {TOKEN}"}, timeout=60) as http,
            ):
                await producer.append(large_runs(0, 10))
                await until_acknowledged(settings)
                assert await counted(dsn) == 10

                disk.fill()
                await producer.append(large_runs(10, 100))
                await says(processor, "applying", "No space left on device")
                with pytest.raises(job.JobError, match="no room left on its disk"):
                    await job.submit(http, where, 20_000)
                # Longer than EVERYRUN_STALLED_AFTER: the processor must not end itself, as the cause is not its own.
                began = time.monotonic()
                await eventually(lambda: time.monotonic() - began > 6, "some seconds pass", 30)
                assert processor.process.poll() is None
                assert await processor.status("/readyz") == 503
                assert await counted(dsn) < 110

                disk.free_space()
                await until_acknowledged(settings)
                assert await counted(dsn) == 110
                await is_ready(processor)
                await is_ready(submission)
                assert (await job.submit(http, where, 2000))["expected"] == 2000
                submission.terminate()
                await until_acknowledged(settings)
                await are_as_undisturbed(settings, postgres)
            processor.kill()
            submission.kill()


class Broker:
    """A Kafka with its log on the disk. It is started again whenever it ends, as a supervisor would do."""

    def __init__(self, folder: Path, disk: SmallDisk) -> None:
        self.kafka = EmbeddedKafka(
            folder / "kafka", free_port(), free_port(), properties={"log.dirs": str(disk.folder / "logs")}
        )
        self.kafka.prepare()
        self.log = folder / "kafka.log"
        self.deaths = 0
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return process.start(self.kafka.command(), log=self.log, env=os.environ)

    async def supervise(self) -> None:
        while True:
            if self._process.poll() is not None:
                self.deaths += 1
                self._process = self._start()
            await asyncio.sleep(1)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


async def test_webhooks_are_answered_503_while_the_disk_of_kafka_is_full(service: Any, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        broker = Broker(tmp_path, disk)
        supervising = asyncio.create_task(broker.supervise())
        try:
            await _fill_and_recover(service, broker, disk)
        finally:
            supervising.cancel()
            broker.kill()


async def _fill_and_recover(service: Any, broker: Broker, disk: SmallDisk) -> None:
    settings = Settings(kafka_bootstrap=broker.kafka.bootstrap, topic_prefix="full.")

    async def created() -> bool:
        try:
            await topics.create(settings)
        except Exception:
            return False
        return True

    await eventually(created, "Kafka answers and has the topics", 90)
    bridge: ServiceProcess = service(
        "bridge",
        EVERYRUN_WEBHOOK_SECRETS=SECRET,
        EVERYRUN_KAFKA_BOOTSTRAP=settings.kafka_bootstrap,
        EVERYRUN_TOPIC_PREFIX=settings.topic_prefix,
    )
    await bridge.ready()
    acknowledged: set[str] = set()
    async with httpx.AsyncClient(timeout=60) as http:

        async def send(run: str) -> int:
            text = os.urandom(50_000).hex()
            status = (await post(http, bridge.url, webhook(run, text=text))).status_code
            if status == 200:
                acknowledged.add(f"e-{run}")
            return status

        for number in range(20):
            assert await send(f"before{number}") == 200
        disk.fill()
        numbers = iter(range(1000))

        async def refused() -> bool:
            return await send(f"full{next(numbers)}") == 503

        await eventually(refused, "a webhook is answered 503", 120)

        async def not_ready() -> bool:
            return await bridge.status("/readyz") == 503

        await eventually(not_ready, "readyz answers 503", 90)
        for number in range(2):
            assert await send(f"meanwhile{number}") == 503
        assert await bridge.status("/healthz") == 200

        disk.free_space()
        await is_ready(bridge)

        async def accepted() -> bool:
            return await send("after") == 200

        await eventually(accepted, "webhooks are accepted again", 120)
    kept = {headers["ce_id"] for _, headers in await read_topic(settings, "runs")}
    assert acknowledged <= kept, "every webhook that was answered 200 is in the log"
