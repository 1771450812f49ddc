"""Define ``up``, ``down``, ``status`` and ``logs``: the embedded stack."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from everyrun.cli import exits
from everyrun.cli.console import err, fail, folding, part_event, print_table
from everyrun.emulator.faults import FAULTS

DataDir = Annotated[
    Path,
    typer.Option("--data-dir", envvar="EVERYRUN_DATA_DIR", help="Folder of the stack: data, ports, keys and logs."),
]
Faults = Annotated[
    str,
    typer.Option(help="Faults of the emulator: none, default, or NAME=VALUE,... Names: " + ", ".join(FAULTS) + "."),
]
Seed = Annotated[int, typer.Option(help="Seed of the emulator's random choices.")]
RunSeconds = Annotated[str, typer.Option(help="Seconds that a run takes at the emulator: SECONDS or SHORTEST:LONGEST.")]
Plan = Annotated[str, typer.Option(help="Plan at Extend, which sets the rate limits: payg, scale or enterprise.")]
Processors = Annotated[int, typer.Option(min=1, max=8, help="Number of processor services.")]


def check_emulator_options(faults: str, run_seconds: str, plan: str) -> None:
    """Raise typer.BadParameter if an option of the emulator is wrong."""
    from everyrun.emulator.app import parse_seconds
    from everyrun.emulator.faults import InvalidFaultsError, parse_faults
    from everyrun.settings import PLAN_REQUESTS_PER_SECOND

    try:
        parse_faults(faults)
        parse_seconds(run_seconds)
    except (InvalidFaultsError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    if plan not in PLAN_REQUESTS_PER_SECOND:
        raise typer.BadParameter(f"--plan is one of {', '.join(PLAN_REQUESTS_PER_SECOND)}, not {plan!r}")


def up(
    data_dir: DataDir = Path(".everyrun"),
    processors: Processors = 1,
    faults: Faults = "none",
    seed: Seed = 1,
    run_seconds: RunSeconds = "0.2:2",
    plan: Annotated[
        str | None,
        typer.Option(
            help="Plan at Extend, which sets the rate limits: payg, scale or enterprise.", show_default="enterprise"
        ),
    ] = None,
    extend: Annotated[
        bool,
        typer.Option(
            "--extend",
            help="Use the real Extend instead of the emulator. Needs EXTEND_API_KEY and EVERYRUN_WEBHOOK_SECRETS.",
        ),
    ] = False,
) -> None:
    """Run Kafka, Postgres, the emulator of Extend and every service until Ctrl-C.

    If EVERYRUN_KAFKA_BOOTSTRAP or EVERYRUN_POSTGRES_DSN is set, the stack uses that server instead of starting one.

    Example: everyrun up --faults drop=0.1,duplicate=0.2
    """
    import asyncio

    from everyrun.cli.signals import StoppedError, until_stopped
    from everyrun.embedded.process import PlatformError
    from everyrun.embedded.stack import Options, Stack
    from everyrun.embedded.state import StackError
    from everyrun.settings import SettingsError

    check_emulator_options(faults, run_seconds, plan or "enterprise")

    async def run() -> None:
        options = Options(data_dir, processors, faults, seed, run_seconds, plan, extend, servers_of_environment=True)
        began = time.monotonic()
        err.print(f"Starting the stack in {data_dir}")
        async with Stack(options, part_event) as stack:
            err.print(f"[bold green]Ready[/] after {time.monotonic() - began:.1f} s; Ctrl-C ends it")
            _show_addresses(stack.endpoints, data_dir)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError as stopped:
                # until_stopped passes the name of the signal to cancel().
                err.print(f"Stopping ({stopped.args[0]})" if stopped.args else "Stopping")
                raise

    try:
        with contextlib.suppress(StoppedError):
            asyncio.run(until_stopped(run()))
    except (StackError, PlatformError, SettingsError) as error:
        fail(str(error))


def _show_addresses(endpoints: dict[str, str], data_dir: Path) -> None:
    for name in ("submission_url", "query_url", "bridge_url", "emulator_url", "kafka_bootstrap", "workflow_id"):
        if endpoints[name]:
            typer.echo(f"{name:<16} {endpoints[name]}")
    typer.echo(f"{'keys, token, dsn':<16} {data_dir / 'endpoints.json'}")


def down(data_dir: DataDir = Path(".everyrun")) -> None:
    """Stop a running stack, and keep its data.

    Example: everyrun down
    """
    from everyrun.embedded.state import holder

    pid = holder(data_dir)
    if pid is None:
        fail(f"no stack runs in {data_dir}", exits.NOT_FOUND)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 20
    while holder(data_dir) == pid:
        if time.monotonic() > deadline:
            fail(f"process {pid} did not end within 20 s. See its logs in {data_dir / 'logs'}")
        time.sleep(0.1)
    err.print(f"The stack in {data_dir} is down. To start it again, run: everyrun up --data-dir {data_dir}")


def status(data_dir: DataDir = Path(".everyrun")) -> None:
    """Show the parts of a running stack and their states.

    Example: everyrun status
    """
    from everyrun.embedded.state import holder, read_status

    pid = holder(data_dir)
    if pid is None:
        fail(f"no stack runs in {data_dir}; start one with: everyrun up", exits.NOT_FOUND)
    err.print(f"The stack in {data_dir}, process {pid}")
    table = Table("part", folding("state"), "for", "pid", "port", "restarts")
    for row in read_status(data_dir):
        lasts = str(timedelta(seconds=int(time.time() - row["since"])))
        cells = (lasts, str(row["pid"] or ""), str(row["port"]), str(row["restarts"]))
        table.add_row(row["part"], escape(_state(row)), *cells)
    print_table(table)


def _state(row: dict[str, Any]) -> str:
    """Return the state of a part. Ask a service that is ready; for any other part, return what the stack recorded."""
    if row["state"] != "ready" or row["url"] is None:
        return str(row["state"])
    import httpx

    try:
        answer = httpx.get(row["url"] + "/readyz", timeout=2, trust_env=False)
    except httpx.TransportError:
        return "does not answer"
    body = answer.json()
    waits = "; ".join(f"{part}: {why}" for part, why in (body.get("waiting") or {}).items())
    if answer.status_code == 200:
        return f"ready, waits for {waits}" if waits else "ready"
    return f"not ready: {waits or body.get('reason', body['status'])}"


def logs(
    name: Annotated[
        str, typer.Argument(help="Name of the part: kafka, postgres, emulator, submission, bridge, processor-0, ...")
    ],
    data_dir: DataDir = Path(".everyrun"),
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Number of lines to show from the end.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow the log until Ctrl-C.")] = False,
) -> None:
    """Show the log of a part of the stack.

    Example: everyrun logs bridge -f
    """
    folder = data_dir / "logs"
    path = folder / f"{name}.log"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.log"))) or "none yet"
        fail(f"there is no log of {name!r} in {folder}; the logs are: {there}", exits.NOT_FOUND)
    with path.open(errors="replace") as file:
        for line in file.readlines()[-lines:] if lines else ():
            typer.echo(line, nl=False)
        while follow:
            line = file.readline()
            if line:
                typer.echo(line, nl=False)
            else:
                time.sleep(0.2)
                if path.exists() and path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                    # The part was restarted, and its log had become so large that it was renamed: follow the new file.
                    return logs(name, data_dir, 1_000, follow)
