"""Each part of a stack runs with the right command and settings."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

from everyrun.embedded.parts import (
    SERVICES,
    Options,
    emulator_command,
    ports_needed,
    service_command,
    service_env,
    webhook_secrets,
)

STATE = {
    "ports": {
        name: 20_000 + n for n, name in enumerate(("emulator", *SERVICES, "processor-0", "processor-1", "dropin"))
    },
    "api_token": "ert_1",
    "extend_api_key": "sk_1",
    "workflow_id": "workflow_1",
    "webhook_secret": "wss_1",
}
ENDPOINTS = {
    "kafka_bootstrap": "127.0.0.1:9092",
    "postgres_dsn": "postgresql://x@127.0.0.1/y",
    "webhook_secret": "wss_1",
}


def env(name: str, options: Options) -> dict[str, str]:
    return service_env(name, Path("/data"), STATE, options, ENDPOINTS)


def test_services_of_the_emulator_stack_talk_to_the_emulator_at_its_plan() -> None:
    settings = env("reconciler", Options())
    assert settings["EVERYRUN_EXTEND_BASE_URL"] == settings["EVERYRUN_SIGNED_URL_ORIGINS"] == "http://127.0.0.1:20000"
    assert settings["EXTEND_API_KEY"] == "sk_1"
    assert settings["EVERYRUN_WEBHOOK_SECRETS"] == "wss_1"
    assert settings["EVERYRUN_PLAN"] == "enterprise"


def test_the_bridge_of_the_emulator_takes_the_secrets_of_the_environment_too() -> None:
    assert webhook_secrets(STATE, []) == "wss_1"
    assert webhook_secrets(STATE, ["wss_2", "wss_1", "wss_3"]) == "wss_1,wss_2,wss_3"
    # The stack's own endpoint is not made yet.
    assert webhook_secrets({**STATE, "webhook_secret": None}, []) == ""


def test_with_the_real_extend_its_settings_are_left_to_the_environment() -> None:
    settings = env("reconciler", Options(extend=True))
    for name in ("EVERYRUN_EXTEND_BASE_URL", "EXTEND_API_KEY", "EVERYRUN_WEBHOOK_SECRETS", "EVERYRUN_PLAN"):
        assert name not in settings
    assert "EVERYRUN_SIGNED_URL_ORIGINS" not in settings
    assert env("reconciler", Options(extend=True, plan="scale"))["EVERYRUN_PLAN"] == "scale"


def test_a_stack_with_servers_of_its_own_speaks_to_its_kafka_as_that_speaks() -> None:
    assert env("bridge", Options())["EVERYRUN_KAFKA_SECURITY_PROTOCOL"] == "PLAINTEXT"
    assert "EVERYRUN_KAFKA_SECURITY_PROTOCOL" not in env("bridge", Options(servers_of_environment=True))


def test_services_do_not_reach_each_other_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "kafka.internal")
    monkeypatch.delenv("no_proxy", raising=False)
    for name, value in env("reconciler", Options()).items():
        if name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert urllib.request.proxy_bypass("127.0.0.1")
    assert urllib.request.proxy_bypass("kafka.internal")
    assert not urllib.request.proxy_bypass("api.extend.ai")


def test_each_processor_has_an_index_and_a_port_of_its_own() -> None:
    options = Options(processors=2)
    settings = env("processor-1", options)
    assert settings["EVERYRUN_PROCESSOR_INDEX"] == "1"
    assert settings["EVERYRUN_PROCESSOR_LISTEN"] == f"127.0.0.1:{STATE['ports']['processor-1']}"
    assert service_command("processor-1", Path("/data/ready"))[-2:] == ["everyrun.processor", "/data/ready"]


def test_settings_of_the_options_come_last() -> None:
    assert env("query", Options(env={"EVERYRUN_API_TOKEN": "other"}))["EVERYRUN_API_TOKEN"] == "other"


def test_the_emulator_gets_what_was_asked_for() -> None:
    options = Options(faults="drop=1.0", seed=7, run_seconds="0", plan="payg")
    command = emulator_command(Path("/data"), STATE, options)
    given = dict(zip(command[4::2], command[5::2], strict=True))
    assert given == {
        "--listen": "127.0.0.1:20000",
        "--state-dir": "/data/emulator",
        "--api-key": "sk_1",
        "--workflow-id": "workflow_1",
        "--seed": "7",
        "--run-seconds": "0",
        "--plan": "payg",
        "--faults": "drop=1.0",
    }


def test_a_part_that_is_replaced_needs_no_port() -> None:
    everything = ports_needed(Options(processors=2), own_kafka=True, own_postgres=True)
    assert {"kafka", "kafka-controller", "postgres", "emulator", "processor-1"} < set(everything)
    least = ports_needed(Options(extend=True), own_kafka=False, own_postgres=False)
    assert set(least) == {*SERVICES, "dropin", "processor-0"}
