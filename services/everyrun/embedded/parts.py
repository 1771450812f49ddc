"""Declare the command line and the settings of each part of a stack. Pure."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SERVICES = ("submission", "bridge", "reconciler", "query", "replay")

#: -P keeps the working folder off the module path: its folders kafka and postgres are not modules.
_PYTHON = (sys.executable, "-P", "-m")


@dataclass
class Options:
    """Options of a stack. ``env`` adds settings to every service; ``services`` are those to start."""

    data_dir: Path = Path(".everyrun")
    processors: int = 1
    faults: str = "none"
    seed: int = 1
    run_seconds: str = "0.2:2"
    #: None: enterprise with the emulator, EVERYRUN_PLAN with ``extend``.
    plan: str | None = None
    extend: bool = False
    #: Use the Kafka and Postgres of EVERYRUN_KAFKA_BOOTSTRAP and EVERYRUN_POSTGRES_DSN. Off, the stack ignores them and
    #: starts its own: a demo or a test in a shell with production's settings must not touch production.
    servers_of_environment: bool = False
    env: dict[str, str] = field(default_factory=dict)
    services: tuple[str, ...] = SERVICES
    #: The emulator sends payloads over this many bytes as a signed link.
    link_over: int = 131_072
    #: Maximum delay of a restart, in seconds. The delay starts at half a second and doubles.
    most_backoff: float = 10.0


def ports_needed(options: Options, *, own_kafka: bool, own_postgres: bool) -> list[str]:
    """Return the names of the ports on which this stack's parts listen."""
    names = ["kafka", "kafka-controller"] if own_kafka else []
    names += ["postgres"] if own_postgres else []
    names += [] if options.extend else ["emulator"]
    # Every service, even if it is not started: the settings name them all.
    return [*names, *SERVICES, *processors(options)]


def processors(options: Options) -> list[str]:
    """Return the names of the processors."""
    return [f"processor-{number}" for number in range(options.processors)]


def url(state: Mapping[str, Any], name: str) -> str:
    """Return the base URL of a part."""
    return f"http://127.0.0.1:{state['ports'][name]}"


def webhook_secrets(state: Mapping[str, Any], given: Iterable[str]) -> str:
    """Return EVERYRUN_WEBHOOK_SECRETS for the bridge of a stack with the emulator.

    The stack's own secret comes first, then the given ones, so that a rotation can be rehearsed.
    """
    return ",".join(dict.fromkeys(filter(None, (state["webhook_secret"], *given))))


def emulator_command(folder: Path, state: Mapping[str, Any], options: Options) -> list[str]:
    """Return the command line of the emulator."""
    flags = {
        "--listen": f"127.0.0.1:{state['ports']['emulator']}",
        "--state-dir": str(folder / "emulator"),
        "--api-key": state["extend_api_key"],
        "--workflow-id": state["workflow_id"],
        "--seed": str(options.seed),
        "--run-seconds": options.run_seconds,
        "--plan": options.plan or "enterprise",
        "--faults": options.faults,
    }
    return [*_PYTHON, "everyrun.emulator", *(word for flag in flags.items() for word in flag)]


def service_command(name: str, gate: Path) -> list[str]:
    """Return the command line of a service or processor. It waits until the file ``gate`` exists."""
    return [*_PYTHON, "everyrun.embedded.held", f"everyrun.{name.partition('-')[0]}", str(gate)]


def service_env(
    name: str, folder: Path, state: Mapping[str, Any], options: Options, endpoints: Mapping[str, str]
) -> dict[str, str]:
    """Return the settings of a service. They override the environment of the stack."""
    ports = state["ports"]
    # Requests to other parts bypass the environment's proxy. Requests to the real Extend use it.
    around = ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1,localhost")))
    env = {
        "NO_PROXY": around,
        "no_proxy": around,
        "EVERYRUN_DATA_DIR": str(folder),
        "EVERYRUN_KAFKA_BOOTSTRAP": endpoints["kafka_bootstrap"],
        "EVERYRUN_POSTGRES_DSN": endpoints["postgres_dsn"],
        "EVERYRUN_API_TOKEN": state["api_token"],
    }
    if not options.servers_of_environment:
        env["EVERYRUN_KAFKA_SECURITY_PROTOCOL"] = "PLAINTEXT"
    for service in SERVICES:
        env[f"EVERYRUN_{service.upper()}_LISTEN"] = f"127.0.0.1:{ports[service]}"
    if options.plan is not None or not options.extend:
        env["EVERYRUN_PLAN"] = options.plan or "enterprise"
    if not options.extend:
        env["EVERYRUN_EXTEND_BASE_URL"] = url(state, "emulator")
        env["EXTEND_API_KEY"] = state["extend_api_key"]
        env["EVERYRUN_WEBHOOK_SECRETS"] = endpoints["webhook_secret"]
        env["EVERYRUN_SIGNED_URL_ORIGINS"] = url(state, "emulator")
    if name in processors(options):
        env["EVERYRUN_PROCESSOR_INDEX"] = name.partition("-")[2]
        env["EVERYRUN_PROCESSOR_LISTEN"] = f"127.0.0.1:{ports[name]}"
    return {**env, **options.env}
