"""The emulator's process."""

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
    """``0.2:2`` or ``0``: the shortest and the longest time a run takes. Raises ValueError."""
    shortest, _, longest = text.partition(":")
    times = float(shortest), float(longest or shortest)
    if not 0 <= times[0] <= times[1]:
        raise ValueError(f"{text!r} is not SECONDS or SHORTEST:LONGEST")
    return times


async def serve(listen: str, state_dir: Path, options: Options) -> None:
    """Run until SIGTERM or SIGINT; raises what ended the work before."""
    stopped = asyncio.create_task(stop_on_signals().wait())
    async with emulating(listen, state_dir, options) as work:
        await asyncio.wait([*work, stopped], return_when=asyncio.FIRST_COMPLETED)


def run(
    listen: Annotated[str, typer.Option(help="host:port")] = "127.0.0.1:8899",
    state_dir: Annotated[Path, typer.Option(help="Where everything is kept over a restart.")] = Path(".emulator"),
    api_key: Annotated[str, typer.Option(help="The key that callers carry.")] = "sk_emulator",
    workflow_id: Annotated[str, typer.Option(help="The one workflow there is.")] = "workflow_invoices",
    seed: Annotated[int, typer.Option(help="The same seed makes the same choices.")] = 1,
    run_seconds: Annotated[str, typer.Option(help="How long runs take: SECONDS, or SHORTEST:LONGEST.")] = "0.2:2",
    plan: Annotated[str, typer.Option(help="Rate limits: payg, scale or enterprise.")] = "enterprise",
    faults: Annotated[str, typer.Option(help=f"none, default, or NAME=VALUE,... of: {', '.join(FAULTS)}")] = "none",
    webhook_retry_seconds: Annotated[float, typer.Option(help="Delay before the first retry of a webhook.")] = 1.0,
) -> None:
    """Stand in for Extend, for development and tests."""
    telemetry.configure("emulator")
    rates = {str(name): rate for name, rate in PLAN_REQUESTS_PER_SECOND.items()}
    if plan not in rates:
        raise typer.BadParameter(f"plan: one of {', '.join(rates)}")
    try:
        times, asked = parse_seconds(run_seconds), parse_faults(faults)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    options = Options(api_key, workflow_id, seed, times, rates[plan], asked, webhook_retry_seconds)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(listen, state_dir, options))


def main() -> None:
    """``python -m everyrun.emulator``."""
    typer.run(run)
