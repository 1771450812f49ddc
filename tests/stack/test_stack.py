"""``everyrun up``: its parts, its folder and its end. One stack is started twice here; the tests run in order."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx
import psutil
import pytest

from everyrun.doctor.ask_bridge import self_test
from everyrun.embedded import parts
from everyrun.embedded.state import read_endpoints, read_status
from everyrun.log import topics
from everyrun.settings import Settings
from tests.contract.conftest import KEY, EmulatorProcess
from tests.stack.up import Up, everyrun, is_gone, wait_for

pytestmark = pytest.mark.stack

PARTS = {
    "kafka",
    "postgres",
    "emulator",
    "submission",
    "bridge",
    "reconciler",
    "query",
    "replay",
    "notifier",
    "processor-0",
    "processor-1",
}
KEYS = {
    *("submission_url", "bridge_url", "query_url", "replay_url", "emulator_url", "kafka_bootstrap", "postgres_dsn"),
    *("api_token", "webhook_secret", "extend_api_key", "workflow_id"),
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """The stack, started for the first time."""
    up = Up(tmp_path_factory.mktemp("stack") / "data", "--processors", "2")
    try:
        up.until_ready()
        yield up
    finally:
        # Also if the stack did not get ready: the processes that it started end with it.
        up.kill()


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[EmulatorProcess]:
    """An emulator that the stack did not start."""
    running = EmulatorProcess(tmp_path / "emulator")
    yield running
    running.kill()


def endpoints(up: Up) -> dict[str, str]:
    found = read_endpoints(up.folder)
    assert found is not None
    return found


def test_every_part_reports_ready_and_no_secret_is_shown(running: Up) -> None:
    output = running.output()
    for part in PARTS:
        assert f"{part} " in output
    found = endpoints(running)
    for secret in ("api_token", "webhook_secret", "extend_api_key", "postgres_dsn"):
        assert found[secret] not in output
    assert found["submission_url"] in output


def test_endpoints_have_every_key_and_only_the_owner_can_read_them(running: Up) -> None:
    found = endpoints(running)
    assert set(found) >= KEYS
    assert all(found.values())
    assert not any(found[key].endswith("/") for key in KEYS)
    for name in ("endpoints.json", "stack.json"):
        assert stat.S_IMODE((running.folder / name).stat().st_mode) == 0o600


async def test_every_part_answers(running: Up) -> None:
    found = endpoints(running)
    async with httpx.AsyncClient() as http:
        for name in ("submission_url", "bridge_url", "query_url", "emulator_url"):
            assert (await http.get(found[name] + "/readyz")).status_code == 200
    await topics.check(Settings(kafka_bootstrap=found["kafka_bootstrap"]))
    connection = await asyncpg.connect(found["postgres_dsn"])
    schemas = await connection.fetch("select distinct schemaname from pg_tables where tablename = 'schema_migrations'")
    await connection.close()
    assert {row["schemaname"] for row in schemas} == {"everyrun", "everyrun_index", "everyrun_queue"}


async def test_the_webhook_endpoint_subscribes_to_the_workflow(running: Up) -> None:
    found = endpoints(running)
    headers = {"authorization": f"Bearer {found['extend_api_key']}", "x-extend-api-version": "2026-02-09"}
    async with httpx.AsyncClient(base_url=found["emulator_url"], headers=headers) as http:
        (endpoint,) = (await http.get("/webhook_endpoints")).json()["data"]
        (subscription,) = (await http.get("/webhook_subscriptions")).json()["data"]
    assert endpoint["url"] == found["bridge_url"] + "/webhooks/extend"
    assert endpoint["advancedOptions"] == {"payload": {"format": "url", "urlThresholdBytes": 131072}}
    assert subscription["resourceId"] == found["workflow_id"]
    assert {event.partition(".")[2] for event in subscription["enabledEvents"]} == {
        *("completed", "failed", "needs_review", "rejected", "cancelled")
    }


def test_status_shows_each_part_and_logs_shows_its_log(running: Up) -> None:
    shown = everyrun("status", "--data-dir", running.folder)
    assert shown.returncode == 0
    for part, pid in running.pids().items():
        (line,) = (line for line in shown.stdout.splitlines() if f" {part} " in line)
        assert f" {pid} " in line
        assert " ready " in line
    assert set(running.pids()) == PARTS
    log = everyrun("logs", "bridge", "--data-dir", running.folder)
    assert json.loads(log.stdout.splitlines()[0])["service"] == "bridge"
    missing = everyrun("logs", "nothing", "--data-dir", running.folder)
    assert missing.returncode == 4
    assert "bridge" in missing.stderr


def test_a_folder_in_use_is_refused_and_the_process_named(running: Up) -> None:
    refused = everyrun("up", "--data-dir", running.folder)
    assert refused.returncode == 1
    assert f"process {running.process.pid}" in refused.stderr
    assert running.process.poll() is None
    assert read_endpoints(running.folder) is not None


@pytest.mark.parametrize("part", ["bridge", "postgres"])
def test_a_part_that_dies_is_reported_and_restarted(running: Up, part: str) -> None:
    before = running.pids()[part]
    os.kill(before, signal.SIGKILL)

    def again() -> bool:
        (row,) = (row for row in read_status(running.folder) if row["part"] == part)
        return row["pid"] != before and row["state"] == "ready" and row["restarts"] == 1

    wait_for(again, f"{part} runs again", 30)
    lines = [line for line in running.output().splitlines() if line.lstrip().startswith(f"{part} ")]
    assert "died (status -9)" in lines[-2]
    assert "ready again" in lines[-1]


@dataclass
class Ended:
    """The state after the first stack has ended."""

    endpoints: dict[str, str]
    cluster_id: str
    processes: list[psutil.Process]
    seconds: float
    status: int


@pytest.fixture(scope="module")
async def ended(running: Up) -> Ended:
    """End the first stack by SIGINT while a client of the database stays connected."""
    found = endpoints(running)
    cluster = await topics.cluster_id(Settings(kafka_bootstrap=found["kafka_bootstrap"]))
    connection = await asyncpg.connect(found["postgres_dsn"])
    await connection.execute("create table public.kept as select 42 as answer")
    await connection.execute("drop schema everyrun cascade")
    processes = running.everything()
    began = time.monotonic()
    running.process.send_signal(signal.SIGINT)
    status = running.process.wait(timeout=30)
    seconds = time.monotonic() - began
    connection.terminate()
    return Ended(found, cluster, processes, seconds, status)


def test_sigint_inherited_as_ignored_stops_the_stack_and_all_processes(running: Up, ended: Ended) -> None:
    assert ended.status == 0
    assert ended.seconds < 15
    assert len(ended.processes) > len(PARTS)
    assert [process for process in ended.processes if not is_gone(process)] == []
    assert not (running.folder / "endpoints.json").exists()
    # Postgres was shut down, not killed.
    assert "database system is shut down" in (running.folder / "logs" / "postgres.log").read_text()


def test_status_and_down_report_that_no_stack_runs(running: Up, ended: Ended) -> None:
    for command in ("status", "down"):
        refused = everyrun(command, "--data-dir", running.folder)
        assert refused.returncode == 4
        assert "no stack runs" in refused.stderr


def test_a_busy_port_is_refused_before_anything_starts(running: Up, ended: Ended) -> None:
    port = json.loads((running.folder / "stack.json").read_text())["ports"]["postgres"]
    log = (running.folder / "logs" / "kafka.log").stat()
    with socket.create_server(("127.0.0.1", port)):
        refused = everyrun("up", "--data-dir", running.folder)
    assert refused.returncode == 1
    assert f"port {port} of postgres" in refused.stderr
    assert (running.folder / "logs" / "kafka.log").stat() == log


@pytest.fixture(scope="module")
def again(running: Up, ended: Ended) -> Iterator[Up]:
    """The stack, started again in the same folder, with a second signing secret as in a rotation."""
    up = Up(running.folder, "--processors", "2", EVERYRUN_WEBHOOK_SECRETS="wss_rehearsed")
    try:
        up.until_ready()
        yield up
    finally:
        # Also if the stack did not get ready: the processes that it started end with it.
        up.kill()


async def test_a_restarted_stack_has_the_same_ports_keys_and_data(again: Up, ended: Ended) -> None:
    secrets = ended.endpoints["webhook_secret"] + ",wss_rehearsed"
    assert endpoints(again) == {**ended.endpoints, "webhook_secret": secrets}
    settings = Settings(kafka_bootstrap=ended.endpoints["kafka_bootstrap"])
    assert await topics.cluster_id(settings) == ended.cluster_id
    connection = await asyncpg.connect(ended.endpoints["postgres_dsn"])
    assert await connection.fetchval("select answer from public.kept") == 42
    # The dropped schema exists again.
    assert await connection.fetchval("select count(*) from everyrun.results") == 0
    await connection.close()


async def test_the_bridge_accepts_its_own_secret_and_those_of_the_environment(again: Up) -> None:
    own, rehearsed = endpoints(again)["webhook_secret"].split(",")
    url = endpoints(again)["bridge_url"] + "/webhooks/extend"
    for secret, expected in ((own, 200), (rehearsed, 200), ("wss_other", 401)):
        test = await self_test(url, secret.encode(), 1)
        assert test.answer.status == expected, secret


async def test_kill_9_of_the_stack_leaves_no_process(again: Up) -> None:
    connection = await asyncpg.connect(endpoints(again)["postgres_dsn"])
    processes = again.everything()
    again.kill()
    wait_for(lambda: all(map(is_gone, processes)), f"{processes} are gone", 10)
    connection.terminate()
    assert read_endpoints(again.folder) is None


def test_sigterm_during_the_start_leaves_no_process(again: Up) -> None:
    again.kill()
    third = Up(again.folder)
    own = psutil.Process(third.process.pid)
    wait_for(lambda: len(own.children()) >= 3 or not own.is_running(), "Kafka, Postgres and the emulator run", 30)
    processes = third.everything()
    third.process.terminate()
    assert third.process.wait(timeout=15) == 0
    assert [process for process in processes if not is_gone(process)] == []


def test_the_real_extend_needs_its_key_and_secrets(tmp_path: Path) -> None:
    refused = everyrun("up", "--extend", "--data-dir", tmp_path / "data")
    assert refused.returncode == 1
    assert "EXTEND_API_KEY is not set" in refused.stderr
    assert "EVERYRUN_WEBHOOK_SECRETS is not set" in refused.stderr
    assert not (tmp_path / "data" / "logs").exists()


def test_a_kafka_protocol_without_an_external_kafka_is_refused(tmp_path: Path) -> None:
    done = everyrun("up", "--data-dir", tmp_path / "x", EVERYRUN_KAFKA_SECURITY_PROTOCOL="SSL")
    assert done.returncode == 1
    assert "EVERYRUN_KAFKA_BOOTSTRAP" in done.stderr


def test_kafka_postgres_and_extend_can_be_external(
    tmp_path: Path, kafka: str, database: str, emulator: EmulatorProcess
) -> None:
    env = {
        "EVERYRUN_KAFKA_BOOTSTRAP": kafka,
        "EVERYRUN_TOPIC_PREFIX": "replaced.",
        "EVERYRUN_POSTGRES_DSN": database,
        "EVERYRUN_EXTEND_BASE_URL": emulator.url,
        "EXTEND_API_KEY": KEY,
        "EVERYRUN_WEBHOOK_SECRETS": "wss_old,wss_new",
    }
    up = Up(tmp_path / "data", "--extend", **env)
    try:
        up.until_ready()
        assert set(up.pids()) == {*parts.SERVICES, "processor-0"}
        found = endpoints(up)
        assert (found["kafka_bootstrap"], found["postgres_dsn"]) == (kafka, database)
        assert (found["extend_api_key"], found["webhook_secret"]) == (KEY, "wss_old,wss_new")
        assert found["emulator_url"] == found["workflow_id"] == ""
        assert everyrun("topics", "check", **env).returncode == 0
        assert everyrun("down", "--data-dir", up.folder).returncode == 0
        assert up.process.wait(5) == 0
    finally:
        up.kill()


async def test_a_database_bound_to_another_extend_is_refused(
    tmp_path: Path, kafka: str, database: str, emulator: EmulatorProcess
) -> None:
    connection = await asyncpg.connect(database)
    await connection.execute("update everyrun_queue.installation set vendor = 'https://api.extend.ai'")
    await connection.close()
    env = {
        "EVERYRUN_KAFKA_BOOTSTRAP": kafka,
        "EVERYRUN_TOPIC_PREFIX": "refused.",
        "EVERYRUN_POSTGRES_DSN": database,
        "EVERYRUN_EXTEND_BASE_URL": emulator.url,
        "EXTEND_API_KEY": KEY,
        "EVERYRUN_WEBHOOK_SECRETS": "wss_1",
    }
    refused = everyrun("up", "--extend", "--data-dir", tmp_path / "data", **env)
    assert refused.returncode == 1
    assert "bound to the Extend https://api.extend.ai" in refused.stderr.replace("\n", " ")


def test_an_unavailable_external_kafka_is_reported(tmp_path: Path, database: str) -> None:
    env = {"EVERYRUN_KAFKA_BOOTSTRAP": "127.0.0.1:1", "EVERYRUN_POSTGRES_DSN": database}
    refused = everyrun("up", "--data-dir", tmp_path / "data", **env)
    assert refused.returncode == 1
    assert "cannot create the topics at 127.0.0.1:1" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_unusable_data_folder_is_reported() -> None:
    refused = everyrun("up", "--data-dir", "/proc/nothing")
    assert refused.returncode == 1
    assert "cannot use the data folder /proc/nothing" in refused.stderr
