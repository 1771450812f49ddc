"""Assemble the emulator from its parts."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from everyrun.emulator.api import Api
from everyrun.emulator.engine import Engine
from everyrun.emulator.faults import Dice
from everyrun.emulator.runs import Plan
from everyrun.emulator.store import Store
from everyrun.emulator.webhook_content import Links
from everyrun.emulator.webhooks import Webhooks
from everyrun.health import Health
from everyrun.serve import http_server, with_health


@dataclass(frozen=True, slots=True)
class Options:
    """The options of an emulator.

    ``run_seconds`` are the shortest and the longest duration of a run. ``requests_per_second`` is the rate limit for
    each category of requests (get, write, run). ``first_retry`` is the delay in seconds before the first retry of a
    webhook.
    """

    api_key: str = "sk_emulator"
    workflow_id: str = "workflow_invoices"
    seed: int = 1
    run_seconds: tuple[float, float] = (0.2, 2.0)
    requests_per_second: float = 75.0
    faults: Mapping[str, float] = field(default_factory=dict)
    first_retry: float = 1.0


@contextlib.asynccontextmanager
async def emulating(listen: str, state_dir: Path, options: Options) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run an emulator on ``host:port`` during the block, resuming from the state in ``state_dir``.

    Yields the tasks that do the emulator's work. A task ends before the block does only if an error stops it. That
    error is raised when the block ends.
    """
    health = Health("state")
    store = Store(state_dir)
    workflow_made_at, key = await _load_identity(store)
    dice = Dice(options.seed, options.faults)
    plan = Plan(dice, options.seed, *options.run_seconds)
    webhooks = Webhooks(store, dice, Links(f"http://{listen}", key), workflow_made_at, options.first_retry)
    engine = Engine(store, plan, dice, webhooks, options.workflow_id, workflow_made_at, state_dir / "files")
    api = Api(engine, options.api_key, options.requests_per_second)
    work = [asyncio.create_task(part) for part in (engine.advance_runs(), webhooks.deliver(), store.commit_regularly())]
    health.ready("state")
    try:
        async with http_server(listen, with_health(health, api.asgi()), drain=1.0, dated=False):
            yield work
    finally:
        failed = [task for task in work if task.done()]
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await store.close()
    for task in failed:
        task.result()


async def _load_identity(store: Store) -> tuple[float, bytes]:
    """Return the time of this emulator's first start (Unix seconds), and the key with which it signs links."""
    known = store.documents("start")
    workflow_made_at = known.get("born", time.time())
    key = known.get("link_key", secrets.token_hex(32))
    if not known:
        await store.commit(store.put("start", "born", workflow_made_at), store.put("start", "link_key", key))
    return workflow_made_at, bytes.fromhex(key)
