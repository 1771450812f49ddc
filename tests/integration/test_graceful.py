"""A service waits for an unavailable part and says so. It loses nothing and does not hang; if it stalls, it exits."""

from __future__ import annotations

import signal
import time
from typing import Any

import asyncpg
import httpx
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from everyrun.log import topics
from everyrun.log.producer import Producer
from everyrun.settings import Settings
from tests.conftest import eventually, free_port
from tests.integration.conftest import read_topic
from tests.integration.services import ServiceProcess
from tests.integration.test_bridge import SECRET, post, webhook
from tests.records import run_event

pytestmark = pytest.mark.stack


async def says(service: ServiceProcess, part: str, text: str) -> None:
    """Wait until readyz answers 503 with the text about the part."""

    async def said() -> bool:
        try:
            async with httpx.AsyncClient() as http:
                answer = await http.get(service.url + "/readyz")
        except httpx.TransportError:
            return False
        return answer.status_code == 503 and text in answer.json().get("waiting", {}).get(part, "")

    await eventually(said, f"readyz of {service.log.name} says {text!r} of {part}", 60)


async def is_ready(service: ServiceProcess) -> None:
    async def ready() -> bool:
        return await service.status("/readyz") == 200

    await eventually(ready, f"{service.log.name} is ready", 90)


async def runs_in(settings: Settings) -> int:
    connection = await asyncpg.connect(settings.postgres_dsn.get_secret_value())
    try:
        return int(await connection.fetchval("select count(*) from everyrun.unmatched_runs"))
    finally:
        await connection.close()


async def handed_to_the_log(settings: Settings, *runs: str) -> None:
    async with Producer(settings) as producer:
        await producer.append([run_event(run, "batch", "PROCESSED", 1, key=None) for run in runs])


@pytest.mark.chaos
async def test_a_database_that_can_only_be_read_is_waited_for_and_a_worker_that_stands_still_ends(
    service: Any, settings: Settings
) -> None:
    processor = await service("processor", EVERYRUN_STALLED_AFTER=3).ready()
    await handed_to_the_log(settings, "run_1")

    async def has(number: int) -> bool:
        return await runs_in(settings) == number

    await eventually(lambda: has(1), "the first run is in the tables", 60)

    admin = await asyncpg.connect(settings.postgres_dsn.get_secret_value())
    name = await admin.fetchval("select current_database()")
    leave = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and pid <> pg_backend_pid()"
    try:
        await admin.execute(f"alter database {name} set default_transaction_read_only = on")
        await admin.fetch(leave, name)
        await says(processor, "writing", "is read-only")
        await handed_to_the_log(settings, "run_2")
        # Longer than it may stand still: it waits all the same, as the database is what keeps it.
        await says(processor, "database", "ReadOnlySQLTransactionError")
        waited = time.monotonic()
        await eventually(lambda: time.monotonic() - waited > 5, "some seconds pass", 30)
        assert processor.process.poll() is None
        await admin.execute(f"alter database {name} reset default_transaction_read_only")
        await admin.fetch(leave, name)
        await eventually(lambda: has(2), "the second run is in the tables", 60)
        await is_ready(processor)
        async with httpx.AsyncClient() as http:
            text = (await http.get(processor.url + "/metrics")).text
        assert "everyrun_ready 1.0" in text
        assert 'everyrun_processor_lag_records{topic="runs"}' in text

        # Now every part is available, but the processor cannot continue: somebody holds a lock and never releases it.
        async with admin.transaction():
            await admin.execute("lock table everyrun.applied_offsets in exclusive mode")
            await handed_to_the_log(settings, "run_3")
            await eventually(lambda: processor.process.poll() is not None, "it ends itself", 90)
        assert processor.process.returncode == 1
        assert "records wait and none was committed" in processor.log.read_text()
        again = await service("processor").ready()
        await eventually(lambda: has(3), "the third run is in the tables", 60)
        again.terminate()
    finally:
        await admin.close()


@pytest.mark.chaos
async def test_topics_that_went_are_said_and_what_was_not_taken_is_taken_later(
    service: Any, settings: Settings
) -> None:
    bridge = await service("bridge", EVERYRUN_WEBHOOK_SECRETS=SECRET).ready()
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([settings.topic(topic.name) for topic in topics.declared()])
    finally:
        await admin.close()
    await says(bridge, "topics", f"{settings.topic('runs')} is missing")
    async with httpx.AsyncClient(timeout=60) as http:
        assert (await post(http, bridge.url, webhook("r"))).status_code == 503

        async def made() -> bool:
            await topics.create(settings)
            return not topics.compare(topics.declared(), await topics.live(settings))

        await eventually(made, "the topics are there again", 60)
        await is_ready(bridge)

        async def taken() -> bool:
            return (await post(http, bridge.url, webhook("r"))).status_code == 200

        await eventually(taken, "the webhook is taken", 60)
    assert {headers["ce_id"] for _, headers in await read_topic(settings, "runs")} == {"e-r"}


async def test_sigterm_ends_a_service_that_still_waits_for_kafka_and_postgres(service: Any) -> None:
    away = {
        "EVERYRUN_KAFKA_BOOTSTRAP": f"127.0.0.1:{free_port()}",
        "EVERYRUN_POSTGRES_DSN": f"postgresql://u:p@127.0.0.1:{free_port()}/d",
        "EXTEND_API_KEY": "sk_test",
        "EVERYRUN_WEBHOOK_SECRETS": SECRET,
    }
    started = [service(name, **away) for name in ("submission", "processor")]

    async def waits(one: ServiceProcess) -> bool:
        assert one.process.poll() is None, one.log.read_text()[-2000:]
        return "waiting" in one.log.read_text() or await one.status("/healthz") == 200 or _is_waiting(one)

    for one in started:
        await eventually(lambda one=one: waits(one), f"{one.log.name} waits", 60)
    for one in started:
        one.process.send_signal(signal.SIGTERM)
    for one in started:
        assert one.process.wait(timeout=60) == 0, one.log.read_text()[-2000:]


def _is_waiting(one: ServiceProcess) -> bool:
    """Those that listen only once the database answers: they handle SIGTERM by then."""
    status = f"/proc/{one.process.pid}/status"
    with open(status) as lines:
        caught = next(line for line in lines if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) & 1 << (signal.SIGTERM - 1))
