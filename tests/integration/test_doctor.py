"""The doctor finds each problem of a real installation, and none in a working one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import asyncpg
import httpx
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from pydantic import SecretStr

from everyrun.doctor.examine import examine
from everyrun.doctor.findings import Finding
from everyrun.embedded.webhook import register_webhook
from everyrun.extend.client import API_VERSION
from everyrun.log import topics
from everyrun.settings import Settings
from tests.conftest import eventually, free_port
from tests.contract.conftest import KEY, WORKFLOW
from tests.integration.conftest import read_topic

pytestmark = pytest.mark.stack


@pytest.fixture
async def well(service: Any, emulator_with: Any, settings: Settings) -> Settings:
    """Yield the settings of a working installation: an emulator, a bridge, Kafka and Postgres."""
    emulator, port = emulator_with(), free_port()
    url = f"http://127.0.0.1:{port}"
    secret = await register_webhook(emulator.url, KEY, WORKFLOW, url + "/webhooks/extend", 131_072)
    service("bridge", EVERYRUN_WEBHOOK_SECRETS=secret, EVERYRUN_BRIDGE_LISTEN=f"127.0.0.1:{port}")

    async def ready() -> bool:
        try:
            async with httpx.AsyncClient() as http:
                return (await http.get(url + "/readyz")).status_code == 200
        except httpx.TransportError:
            return False

    await eventually(ready, "the bridge is ready", 60)
    return settings.model_copy(
        update={
            "extend_base_url": emulator.url,
            "extend_api_key": SecretStr(KEY),
            "webhook_secrets": [SecretStr(secret)],
            "bridge_url": url,
            "signed_url_origins": [emulator.url],
        }
    )


NO_STORES = {"kafka_bootstrap": "", "postgres_dsn": SecretStr("")}


async def bad(settings: Settings, workflow: str = WORKFLOW, **changes: Any) -> dict[str, Finding]:
    """Return the failed findings by check, and assert that each says what to do."""
    findings = await examine(settings.model_copy(update=changes), workflow)
    found = {finding.check: finding for finding in findings if finding.level == "failed"}
    assert all(finding.found and finding.remedy for finding in found.values())
    return found


def environment(settings: Settings) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("EVERYRUN_", "EXTEND_"))}
    return {
        **plain,
        "COLUMNS": "200",
        "EVERYRUN_DATA_DIR": "/nonexistent",
        "EXTEND_API_KEY": settings.extend_api_key.get_secret_value(),
        "EVERYRUN_EXTEND_BASE_URL": settings.extend_base_url,
        "EVERYRUN_WEBHOOK_SECRETS": settings.webhook_secrets[0].get_secret_value(),
        "EVERYRUN_BRIDGE_URL": settings.bridge_url,
        "EVERYRUN_SIGNED_URL_ORIGINS": ",".join(settings.signed_url_origins),
        "EVERYRUN_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "EVERYRUN_POSTGRES_DSN": settings.postgres_dsn.get_secret_value(),
        "EVERYRUN_TOPIC_PREFIX": settings.topic_prefix,
    }


def doctor(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from everyrun.cli.app import main; main()", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)


async def test_working_installation_has_no_findings_and_no_events(well: Settings) -> None:
    said = doctor(environment(well), "--workflow", WORKFLOW, "--json")
    body = json.loads(said.stdout)
    # Services whose URL is not set cause warnings.
    elsewhere = {"submission", "query", "processor", "reconciler", "replay", "notifier"}
    assert {f["check"] for f in body["findings"] if f["level"] != "ok"} == elsewhere, body
    assert {f["level"] for f in body["findings"]} == {"ok", "warning"}, body
    assert (said.returncode, body["ok"]) == (0, True)
    checks = {f["check"] for f in body["findings"]}
    assert {"Extend's key", "webhook address", "bridge", "Kafka", "Postgres", "clock of Kafka"} <= checks
    for name in ("runs", "batches", "quarantine"):
        assert await read_topic(well, name) == []
    # A failure is printed with its remedy, and the exit code is 1.
    said = doctor({**environment(well), "EXTEND_API_KEY": "sk_wrong"}, "--workflow", WORKFLOW)
    assert said.returncode == 1
    assert "failed   Extend's key" in said.stdout
    assert "→ Set EXTEND_API_KEY" in said.stdout


async def test_problems_at_extend_and_the_bridge_are_found(well: Settings) -> None:
    stores = {"Kafka", "Postgres"}
    well = well.model_copy(update=NO_STORES)
    found = await bad(well, extend_api_key=SecretStr("sk_wrong"))
    assert set(found) - stores == {"Extend's key"}
    assert "EXTEND_API_KEY" in found["Extend's key"].remedy

    found = await bad(well, "workflow_unknown")
    assert "no such workflow" in found["workflow workflow_unknown"].found

    found = await bad(well, webhook_secrets=[SecretStr("wss_another")])
    assert set(found) - stores == {"webhook address", "bridge"}
    assert "signing secret" in found["bridge"].remedy

    headers = {"authorization": f"Bearer {KEY}", "x-extend-api-version": API_VERSION}
    async with httpx.AsyncClient(base_url=well.extend_base_url, headers=headers) as http:
        (endpoint,) = (await http.get("/webhook_endpoints")).json()["data"]
        (subscription,) = (await http.get("/webhook_subscriptions")).json()["data"]

        # The bridge lacks the secret that signs, which its counter of refused webhooks shows.
        await http.post(well.bridge_url + "/webhooks/extend", content=b"{}")
        found = await bad(well)
        assert "1 refused" in found["webhooks so far"].found
        assert "EVERYRUN_WEBHOOK_SECRETS" in found["webhooks so far"].remedy

        some = {"enabledEvents": ["workflow_run.completed"]}
        (await http.post(f"/webhook_subscriptions/{subscription['id']}", json=some)).raise_for_status()
        lacks = (await bad(well))[f"subscription to {WORKFLOW}"]
        assert lacks.found.startswith("lacks workflow_run.failed")
        assert "Subscribe again" in lacks.remedy

        (await http.delete(f"/webhook_subscriptions/{subscription['id']}")).raise_for_status()
        gone = (await bad(well))[f"subscription to {WORKFLOW}"]
        assert "our endpoint is not subscribed" in gone.found
        assert endpoint["id"] in gone.remedy

        dead = {"url": f"http://127.0.0.1:{free_port()}/webhooks/extend"}
        (await http.post(f"/webhook_endpoints/{endpoint['id']}", json=dead)).raise_for_status()
        address = (await bad(well))["webhook address"]
        assert "does not answer" in address.found
        assert "firewall" in address.remedy

        (await http.post(f"/webhook_endpoints/{endpoint['id']}", json={"status": "disabled"})).raise_for_status()
        assert "is disabled" in (await bad(well))["webhook endpoint"].found

        (await http.delete(f"/webhook_endpoints/{endpoint['id']}")).raise_for_status()
        none = (await bad(well))["webhook endpoint"]
        assert "none of Extend's 0 endpoints" in none.found
        assert "Create one" in none.remedy


async def test_wrong_clock_is_found(emulator_with: Any) -> None:
    emulator = emulator_with("--faults", "skew=600")
    found = await bad(Settings(extend_base_url=emulator.url, extend_api_key=SecretStr(KEY)))
    clock = found["clock of Extend"]
    assert clock.found.startswith(("600 s ahead", "599 s ahead", "601 s ahead"))
    assert "NTP" in clock.remedy


async def test_topics_that_could_lose_data_are_found(settings: Settings) -> None:
    few = settings.model_copy(update={"topic_prefix": settings.topic_prefix + "few."})
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    await admin.start()
    try:
        runs = next(topic for topic in topics.declared() if topic.name == "runs")
        await admin.create_topics([NewTopic(few.topic("runs"), 3, 1, topic_configs=runs.config)])
        await topics.create(few)
        week = ConfigResource(
            ConfigResourceType.TOPIC, few.topic("batches"), configs={"retention.ms": str(7 * 86_400_000)}
        )
        await admin.alter_configs([week])

        async def altered() -> bool:
            return (await topics.live(few))["batches"].config["retention.ms"] != "-1"

        await eventually(altered, "the retention is altered", 60)
    finally:
        await admin.close()
    failed = [f for f in await examine(few, WORKFLOW) if f.check == "topics"]
    assert {f.level for f in failed} == {"failed"}
    by_found = {f.found.removeprefix("topic "): f.remedy for f in failed}
    assert by_found[f"{few.topic('runs')} has 3 partitions instead of 8"].startswith("Add partitions")
    retention = f"{few.topic('batches')}: retention.ms is 604800000 instead of -1"
    assert "--add-config retention.ms=-1" in by_found[retention]
    none = settings.model_copy(update={"topic_prefix": settings.topic_prefix + "none."})
    missing = [f for f in await examine(none, WORKFLOW) if f.check in ("topics", "Kafka")]
    assert {f.level for f in missing} == {"failed"}
    assert all("everyrun topics create" in f.remedy for f in missing if f.check == "topics")


async def test_database_without_tables_or_write_access_is_found(settings: Settings) -> None:
    admin = await asyncpg.connect(settings.postgres_dsn.get_secret_value())
    try:
        name = await admin.fetchval("select current_database()")
        await admin.execute(f"alter database {name} set default_transaction_read_only = on")
        only_read = (await bad(settings))["Postgres"]
        assert "is read-only" in only_read.found
        assert "default_transaction_read_only" in only_read.remedy
        await admin.execute(f"alter database {name} reset default_transaction_read_only")
        assert "Postgres" not in await bad(settings)
        await admin.execute("drop schema everyrun cascade")
        found = await bad(settings)
        assert "Postgres" not in found
        assert "the schema everyrun is missing" in found["migrations"].found
        assert "everyrun migrate" in found["migrations"].remedy
    finally:
        await admin.close()
    away = (await bad(settings, postgres_dsn=SecretStr(f"postgresql://u:p@127.0.0.1:{free_port()}/d")))["Postgres"]
    assert "does not answer" in away.found
    assert "EVERYRUN_POSTGRES_DSN" in away.remedy
