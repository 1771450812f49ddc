"""Return the options, ports, command lines and settings of the parts of a stack. Pure."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SERVICES = ("submission", "bridge", "reconciler", "query", "replay", "notifier")

#: -P keeps the working folder off the module path. Without it, Python would take the folders kafka and postgres in the
#: working folder for modules.
_PYTHON = (sys.executable, "-P", "-m")


@dataclass
class Options:
    """Options of a stack."""

    data_dir: Path = Path(".everyrun")
    processors: int = 1
    faults: str = "none"
    seed: int = 1
    run_seconds: str = "0.2:2"
    #: Plan at Extend. None stands for enterprise with the emulator, and for EVERYRUN_PLAN with the real Extend.
    plan: str | None = None
    #: Use the real Extend instead of the emulator.
    extend: bool = False
    #: Use the Kafka and Postgres of EVERYRUN_KAFKA_BOOTSTRAP and EVERYRUN_POSTGRES_DSN. If False, the stack ignores
    #: these variables and starts its own servers: a demo or a test must not touch production, even if the shell has
    #: production's settings.
    servers_of_environment: bool = False
    #: Settings (environment variables) to add for every service.
    env: dict[str, str] = field(default_factory=dict)
    #: The services to start.
    services: tuple[str, ...] = SERVICES
    #: If a payload is larger than this many bytes, the emulator sends a signed link instead of the payload.
    link_over: int = 131_072
    #: Maximum delay before a restart, in seconds. The delay starts at half a second and doubles.
    most_backoff: float = 10.0


def ports_needed(options: Options, *, own_kafka: bool, own_postgres: bool) -> list[str]:
    """Return the names of the ports on which this stack's parts listen."""
    names = ["kafka", "kafka-controller"] if own_kafka else []
    names += ["postgres"] if own_postgres else []
    names += [] if options.extend else ["emulator"]
    # Include the services that are not started, because the settings name the addresses of all services. The drop-in
    # endpoint is a second address of the submission service.
    return [*names, *SERVICES, "dropin", *processors(options)]


def processors(options: Options) -> list[str]:
    """Return the names of the processors."""
    return [f"processor-{number}" for number in range(options.processors)]


def url(state: Mapping[str, Any], name: str) -> str:
    """Return the base URL of a part."""
    return f"http://127.0.0.1:{state['ports'][name]}"


def webhook_secrets(state: Mapping[str, Any], given: Iterable[str]) -> str:
    """Return EVERYRUN_WEBHOOK_SECRETS for the bridge of a stack with the emulator.

    The stack's own secret comes first, then the given ones, so that you can rehearse a rotation of secrets.
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
    """Return the command line of a service or processor. The service waits until the file ``gate`` exists."""
    return [*_PYTHON, "everyrun.embedded.held", f"everyrun.{name.partition('-')[0]}", str(gate)]


def service_env(
    name: str, folder: Path, state: Mapping[str, Any], options: Options, endpoints: Mapping[str, str]
) -> dict[str, str]:
    """Return the settings of a service. They override the environment variables with which the stack was started."""
    ports = state["ports"]
    # Requests to other parts bypass the environment's proxy. Requests to the real Extend use it.
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    no_proxy = ",".join(filter(None, (given, "127.0.0.1,localhost")))
    env = {
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
        "EVERYRUN_DATA_DIR": str(folder),
        "EVERYRUN_KAFKA_BOOTSTRAP": endpoints["kafka_bootstrap"],
        "EVERYRUN_POSTGRES_DSN": endpoints["postgres_dsn"],
        "EVERYRUN_API_TOKEN": state["api_token"],
    }
    if not options.extend:
        # A stack with the emulator is for development and tests, whose receivers run on the same machine.
        env["EVERYRUN_NOTIFY_PRIVATE"] = "true"
    if not options.servers_of_environment:
        env["EVERYRUN_KAFKA_SECURITY_PROTOCOL"] = "PLAINTEXT"
    for service in SERVICES:
        env[f"EVERYRUN_{service.upper()}_LISTEN"] = f"127.0.0.1:{ports[service]}"
    env["EVERYRUN_DROPIN_LISTEN"] = f"127.0.0.1:{ports['dropin']}"
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
