"""The parts of a stack, declared: what each is run with. Without effects."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SERVICES = ("submission", "bridge", "reconciler", "query", "replay")

#: -P: the folder it runs in holds folders named kafka and postgres, which are no modules.
_PYTHON = (sys.executable, "-P", "-m")


@dataclass
class Options:
    """How a stack is to be. ``env`` adds settings for every service; ``services`` may leave some out."""

    data_dir: Path = Path(".everyrun")
    processors: int = 1
    faults: str = "none"
    seed: int = 1
    run_seconds: str = "0.2:2"
    #: None is the emulator's enterprise; with ``extend``, what EVERYRUN_PLAN says.
    plan: str | None = None
    extend: bool = False
    #: Use the Kafka and Postgres that EVERYRUN_KAFKA_BOOTSTRAP and EVERYRUN_POSTGRES_DSN name. Else the stack has its
    #: own, whatever they say: a demo or a test in a shell with production's settings must not touch production.
    servers_of_environment: bool = False
    env: dict[str, str] = field(default_factory=dict)
    services: tuple[str, ...] = SERVICES
    #: Payloads larger than so many bytes come as a signed link.
    link_over: int = 131_072
    #: Seconds between a part's death and its next start, at most; it begins at half a second and doubles.
    most_backoff: float = 10.0


def ports_needed(options: Options, *, own_kafka: bool, own_postgres: bool) -> list[str]:
    """The names of the ports that parts of this stack listen on."""
    names = ["kafka", "kafka-controller"] if own_kafka else []
    names += ["postgres"] if own_postgres else []
    names += [] if options.extend else ["emulator"]
    # All of them, so that every service's settings are whole.
    return [*names, *SERVICES, *processors(options)]


def processors(options: Options) -> list[str]:
    """The names of the processors."""
    return [f"processor-{number}" for number in range(options.processors)]


def url(state: Mapping[str, Any], name: str) -> str:
    """Where a part with HTTP listens."""
    return f"http://127.0.0.1:{state['ports'][name]}"


def webhook_secrets(state: Mapping[str, Any], given: Iterable[str]) -> str:
    """Return the signing secrets that the bridge of an emulator's stack takes, as EVERYRUN_WEBHOOK_SECRETS.

    The stack's own comes first, then those given, so that a rotation can be rehearsed: the endpoint of the stack goes
    on being taken in a shell that has production's secrets set.
    """
    return ",".join(dict.fromkeys(filter(None, (state["webhook_secret"], *given))))


def emulator_command(folder: Path, state: Mapping[str, Any], options: Options) -> list[str]:
    """The emulator's command line."""
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
    """Return the command line of a service or of a processor, which runs when the gate is there."""
    return [*_PYTHON, "everyrun.embedded.held", f"everyrun.{name.partition('-')[0]}", str(gate)]


def service_env(
    name: str, folder: Path, state: Mapping[str, Any], options: Options, endpoints: Mapping[str, str]
) -> dict[str, str]:
    """The settings of a service, over those of the environment that the stack was started in."""
    ports = state["ports"]
    # The other parts are not asked through a proxy that the environment names; the real Extend is.
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
