"""The emulator's process."""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from everyrun import telemetry
from everyrun.emulator.api import Api
from everyrun.emulator.engine import Engine
from everyrun.emulator.events import Links
from everyrun.emulator.faults import FAULTS, Dice, FaultsError, parse_faults
from everyrun.emulator.runs import Plan
from everyrun.emulator.store import Store
from everyrun.emulator.webhooks import Webhooks
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
    born, key = await _remembered(store)
    dice = Dice(options["seed"], options["faults"])
    plan = Plan(dice, options["seed"], *options["run_seconds"])
    webhooks = Webhooks(store, dice, Links(f"http://{listen}", key), born, options["webhook_retry"])
    engine = Engine(store, plan, dice, webhooks, options["workflow_id"], born)
    api = Api(engine, options["api_key"], PLAN_REQUESTS_PER_SECOND[options["plan"]])
    work = [asyncio.create_task(part) for part in (engine.live(), webhooks.work(), store.keep_on())]
    stopped = asyncio.create_task(stop.wait())
    health.ready("state")
    async with http_server(listen, with_health(health, api.asgi()), drain=1.0):
        await asyncio.wait([*work, stopped], return_when=asyncio.FIRST_COMPLETED)
    for task in work:
        if task.done():
            # It never ends by itself: what it raised ends the process, to be started anew.
            task.result()
        task.cancel()
    await store.close()


async def _remembered(store: Store) -> tuple[float, bytes]:
    """When this emulator was first started (Unix seconds), and the key of its signed links."""
    known = store.things("start")
    born = known.get("born", time.time())
    key = known.get("link_key", secrets.token_hex(32))
    if not known:
        await store.now(store.put("start", "born", born), store.put("start", "link_key", key))
    return born, bytes.fromhex(key)


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
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(listen, state_dir, options))


def main() -> None:
    """``python -m everyrun.emulator``."""
    typer.run(run)
