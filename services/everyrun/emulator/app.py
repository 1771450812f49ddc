"""Run the emulator as a process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from everyrun import telemetry
from everyrun.emulator.assembly import Options, emulating
from everyrun.emulator.faults import FAULTS, parse_faults
from everyrun.serve import stop_on_signals
from everyrun.settings import PLAN_REQUESTS_PER_SECOND


def parse_seconds(text: str) -> tuple[float, float]:
    """Parse ``0.2:2`` or ``0`` into the shortest and the longest duration of a run, in seconds. Raises ValueError."""
    shortest, _, longest = text.partition(":")
    times = float(shortest), float(longest or shortest)
    if not 0 <= times[0] <= times[1]:
        raise ValueError(f"{text!r} is not SECONDS or SHORTEST:LONGEST")
    return times


async def serve(listen: str, state_dir: Path, options: Options) -> None:
    """Serve until SIGTERM or SIGINT. If an error ends the emulator's work earlier, raise that error."""
    stopped = asyncio.create_task(stop_on_signals().wait())
    async with emulating(listen, state_dir, options) as work:
        await asyncio.wait([*work, stopped], return_when=asyncio.FIRST_COMPLETED)


def run(
    listen: Annotated[str, typer.Option(help="Address to listen on, as host:port.")] = "127.0.0.1:8899",
    state_dir: Annotated[Path, typer.Option(help="Folder in which the state is kept across restarts.")] = Path(
        ".emulator"
    ),
    api_key: Annotated[str, typer.Option(help="API key that callers must send.")] = "sk_emulator",
    workflow_id: Annotated[str, typer.Option(help="Id of the only workflow that exists.")] = "workflow_invoices",
    seed: Annotated[int, typer.Option(help="Seed that decides when faults strike and how each run goes.")] = 1,
    run_seconds: Annotated[str, typer.Option(help="Duration of each run: SECONDS, or SHORTEST:LONGEST.")] = "0.2:2",
    plan: Annotated[
        str, typer.Option(help="Extend's plan whose rate limits apply: payg, scale or enterprise.")
    ] = "enterprise",
    faults: Annotated[
        str, typer.Option(help=f"Faults: none, default, or NAME=VALUE,... with the names {', '.join(FAULTS)}")
    ] = "none",
    webhook_retry_seconds: Annotated[float, typer.Option(help="Seconds before the first retry of a webhook.")] = 1.0,
) -> None:
    """Stand in for Extend in development and tests.

    Example: python -m everyrun.emulator --faults drop=0.1,duplicate=0.1
    """
    telemetry.configure("emulator")
    rates = {str(name): rate for name, rate in PLAN_REQUESTS_PER_SECOND.items()}
    if plan not in rates:
        raise typer.BadParameter(f"--plan: one of {', '.join(rates)}")
    try:
        times, chosen = parse_seconds(run_seconds), parse_faults(faults)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    options = Options(api_key, workflow_id, seed, times, rates[plan], chosen, webhook_retry_seconds)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(listen, state_dir, options))


def main() -> None:
    """Run the command line of the emulator."""
    typer.run(run)
