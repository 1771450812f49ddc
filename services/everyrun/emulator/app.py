"""The emulator's process."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from everyrun import telemetry
from everyrun.emulator.api import Api
from everyrun.emulator.engine import Engine
from everyrun.emulator.faults import Dice, FaultsError, parse_faults
from everyrun.emulator.runs import Plan
from everyrun.emulator.store import Store
from everyrun.serve import Health, http_server, stop_on_signals, with_health
from everyrun.settings import PLAN_REQUESTS_PER_SECOND


def parse_seconds(text: str) -> tuple[float, float]:
    """``0.2:2`` or ``0``: the shortest and the longest time a run takes. Raises ValueError."""
    shortest, _, longest = text.partition(":")
    times = float(shortest), float(longest or shortest)
    if not 0 <= times[0] <= times[1]:
        raise ValueError(f"{text!r} is not SECONDS or SHORTEST:LONGEST")
    return times


async def serve(listen: str, state_dir: Path, options: dict[str, Any]) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = stop_on_signals()
    health = Health("state")
    store = Store(state_dir)
    born = store.things("counter").get("born")
    if born is None:
        born = time.time()
        await store.now(store.put("counter", "born", born))
    dice = Dice(options["seed"], options["faults"])
    plan = Plan(dice, options["seed"], *options["run_seconds"])
    engine = Engine(store, plan, dice, options["workflow_id"], options["webhook_retry"], born)
    engine.webhooks.origin = f"http://{listen}"
    api = Api(engine, options["api_key"], PLAN_REQUESTS_PER_SECOND[options["plan"]])
    tasks = [asyncio.create_task(work) for work in (engine.live(), engine.webhooks.work(), store.keep_on())]
    health.ready("state")
    async with http_server(listen, with_health(health, api.asgi()), drain=1.0):
        await stop.wait()
    for task in tasks:
        task.cancel()
    await store.close()


def run(
    listen: Annotated[str, typer.Option(help="host:port")] = "127.0.0.1:8899",
    state_dir: Annotated[Path, typer.Option(help="Where everything is kept over a restart.")] = Path(".emulator"),
    api_key: Annotated[str, typer.Option(help="The key that callers carry.")] = "sk_emulator",
    workflow_id: Annotated[str, typer.Option(help="The one workflow there is.")] = "workflow_invoices",
    seed: Annotated[int, typer.Option(help="The same seed makes the same choices.")] = 1,
    run_seconds: Annotated[str, typer.Option(help="How long runs take: SECONDS, or SHORTEST:LONGEST.")] = "0.2:2",
    plan: Annotated[str, typer.Option(help="Rate limits: payg, scale or enterprise.")] = "enterprise",
    faults: Annotated[str, typer.Option(help="none, default, or NAME=VALUE,...")] = "none",
    webhook_retry_seconds: Annotated[float, typer.Option(help="Delay before the first retry of a webhook.")] = 1.0,
) -> None:
    """Stand in for Extend, for development and tests."""
    telemetry.configure("emulator")
    try:
        options = {
            "api_key": api_key,
            "workflow_id": workflow_id,
            "seed": seed,
            "run_seconds": parse_seconds(run_seconds),
            "plan": plan,
            "faults": parse_faults(faults),
            "webhook_retry": webhook_retry_seconds,
        }
    except (FaultsError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    if plan not in PLAN_REQUESTS_PER_SECOND:
        raise typer.BadParameter(f"plan: one of {', '.join(PLAN_REQUESTS_PER_SECOND)}")
    asyncio.run(serve(listen, state_dir, options))


def main() -> None:
    """``python -m everyrun.emulator``."""
    typer.run(run)
