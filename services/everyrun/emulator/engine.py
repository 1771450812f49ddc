"""The emulator's state: batches, runs and their lives, files, counters."""

from __future__ import annotations

import asyncio
import heapq
import time
from pathlib import Path
from typing import Any

import msgspec

from everyrun.emulator.faults import Dice
from everyrun.emulator.files import Files
from everyrun.emulator.runs import FINAL, Plan, Run, _digest
from everyrun.emulator.store import Store, Write, run_write
from everyrun.emulator.timeline import Timeline
from everyrun.emulator.validate import ApiProblem, invalid, missing
from everyrun.emulator.webhooks import Webhooks

#: Published versions of the one workflow there is, oldest first; and its draft.
VERSIONS = ("1", "2")
DRAFT = "draft"
#: Seconds between CANCELLING and CANCELLED.
_CANCEL_TAKES = 0.2


class Engine:
    """Everything behind the API. One process, one event loop.

    What a caller is told is kept first: a method that changes something for a caller returns when it is committed.
    """

    def __init__(
        self,
        store: Store,
        plan: Plan,
        dice: Dice,
        webhooks: Webhooks,
        workflow_id: str,
        born: float,
        folder: Path,
    ) -> None:
        self.store = store
        self.dice = dice
        self.workflow_id = workflow_id
        self.born = born
        self._plan = plan
        self.webhooks = webhooks
        self.runs: list[Run] = []
        self.by_id: dict[str, Run] = {}
        self.by_batch: dict[str, list[Run]] = {}
        self.files = Files(store, folder, webhooks.links, self.runs, self.by_id)
        self.requests = {"get": 0, "write": 0, "run": 0, **store.things("counter").get("requests", {})}
        self.refused: dict[str, int] = store.things("counter").get("refused", {})
        self._counted: dict[str, dict[str, int]] = {}
        self._due: list[tuple[float, int]] = []
        self._wake = asyncio.Event()
        for run in store.runs():
            self._know(run)
            if run.status in ("PENDING", "PROCESSING", "CANCELLING"):
                self._schedule(run)
        self.timeline = Timeline(self.runs)
        webhooks.resume(self.runs)
        store.counters = self._counters

    def _counters(self) -> list[Write]:
        now = {"requests": self.requests, "refused": self.refused, "webhooks": self.webhooks.counts}
        changed = {name: dict(counts) for name, counts in now.items() if counts != self._counted.get(name)}
        self._counted |= changed
        return [self.store.put("counter", name, counts) for name, counts in changed.items()]

    def _know(self, run: Run) -> None:
        self.runs.append(run)
        self.by_id[run.id] = run
        if run.batch_id is not None:
            self.by_batch.setdefault(run.batch_id, []).append(run)

    def _schedule(self, run: Run) -> None:
        at = run.starts_at if run.status == "PENDING" else run.ends_at
        heapq.heappush(self._due, (at, run.number))
        self._wake.set()

    def resolve_version(self, workflow_id: str, version: str | None) -> str:
        """The version that runs: the newest published one by default.

        404 where the workflow or the version does not exist (docs of 2025-04-21; today's do not say).
        Raises ApiProblem.
        """
        if workflow_id != self.workflow_id:
            raise missing(f"workflow {workflow_id}")
        if version is None:
            return VERSIONS[-1]
        if version not in (*VERSIONS, DRAFT):
            raise missing(f"version {version} of workflow {workflow_id}")
        return version

    async def create_batch(
        self, workflow_id: str, version: str, priority: int, inputs: list[tuple[bytes, bytes]]
    ) -> str:
        """Make a batch; its runs are kept when this returns."""
        now = self._now()
        batch_id = f"batch_{_digest(self._plan.seed, 'batch', len(self.by_batch))}"
        made = [self._make(batch_id, workflow_id, version, file, metadata, now) for file, metadata in inputs]
        head = (batch_id, workflow_id, version, priority, now, len(made), 0)
        await self.store.now(("insert into batches values (?, ?, ?, ?, ?, ?, ?)", head), *map(run_write, made))
        for run in made:
            self._schedule(run)
        return batch_id

    async def create_run(self, workflow_id: str, version: str, file: bytes, metadata: bytes) -> Run:
        """Make a single run; it is PROCESSING at once (SDK 1.20.0, workflow_runs/client.py create)."""
        now = self._now()
        run = self._make(None, workflow_id, version, file, metadata, now)
        run.status, run.starts_at = "PROCESSING", now
        await self.store.now(run_write(run))
        self._schedule(run)
        return run

    def _now(self) -> float:
        """The time for a new run: never before the last one's, so that numbers are in the order of creation."""
        return max(time.time(), self.runs[-1].created_at if self.runs else 0.0)

    def _make(
        self, batch_id: str | None, workflow_id: str, version: str, file: bytes, metadata: bytes, now: float
    ) -> Run:
        number = len(self.runs)
        run = Run(number, self._plan.run_id(number), batch_id, workflow_id, version, file, metadata, now)
        self._plan.arrange(run, now)
        self._know(run)
        self.timeline.touch(run)
        return run

    def answered(self, batch_id: str) -> None:
        """The caller was told the batchId."""
        self.store.later(("update batches set answered = 1 where id = ?", (batch_id,)))

    async def live(self) -> None:
        """Move runs on as their times come, for ever."""
        while True:
            now = time.time()
            moved = 0
            while self._due and self._due[0][0] <= now:
                _, number = heapq.heappop(self._due)
                self._move(self.runs[number], now)
                moved += 1
                if moved % 200 == 0:
                    await asyncio.sleep(0)
            self._wake.clear()
            wait = max(self._due[0][0] - time.time(), 0.0) if self._due else 3600.0
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _move(self, run: Run, now: float) -> None:
        if run.deleted:
            return
        if run.status == "PENDING" and run.starts_at <= now:
            run.status = "PROCESSING"
            self.timeline.touch(run)
        if run.status == "CANCELLING":
            self._end(run, "CANCELLED", now)
        elif run.status == "PROCESSING" and run.ends_at <= now:
            self._end(run, run.outcome, run.ends_at)
        elif run.status == "PROCESSING":
            self._schedule(run)

    def _changed(self, run: Run) -> None:
        self.timeline.touch(run)
        self.store.changed(run)

    def _end(self, run: Run, status: str, at: float) -> None:
        """The run comes to a status that is announced."""
        run.status, run.ends_at = status, at
        self._changed(run)
        self.webhooks.announce(run)

    def find(self, run_id: str) -> Run:
        """The run. Raises ApiProblem 404."""
        run = self.by_id.get(run_id)
        if run is None or run.deleted:
            raise missing(f"workflow run {run_id}")
        return run

    async def cancel(self, run: Run) -> None:
        """CANCELLING, then CANCELLED. For others than PENDING and PROCESSING the docs name no status: 400 here."""
        if run.status not in ("PENDING", "PROCESSING"):
            raise invalid(f"a run that is {run.status} cannot be cancelled")
        if run.status == "PENDING":
            run.starts_at = 0.0
        run.status, run.ends_at = "CANCELLING", time.time() + _CANCEL_TAKES
        self._changed(run)
        self._schedule(run)
        await self.store.now()

    async def update(self, run: Run, metadata: dict[str, Any]) -> None:
        """The run's metadata is this from now on."""
        run.metadata = msgspec.json.encode(metadata)
        self.timeline.touch(run)
        await self.store.now(run_write(run))

    async def delete(self, run: Run) -> None:
        """For good; no event is sent."""
        run.deleted = True
        self._changed(run)
        await self.store.now()

    async def act(self, run_id: str, action: Any) -> Run:
        """What a person does in the dashboard: rerun, review_approve, review_reject, delete. Raises ApiProblem."""
        run = self.find(run_id)
        now = time.time()
        if action == "delete":
            await self.delete(run)
        elif action == "rerun" and run.status in FINAL:
            run.next_generation()
            run.status = "PROCESSING"
            self._plan.arrange(run, now)
            self._changed(run)
            self._schedule(run)
        elif action in ("review_approve", "review_reject") and run.status == "NEEDS_REVIEW":
            run.next_generation()
            run.reviewed_at = now
            run.note = "rejected by a reviewer" if action == "review_reject" else None
            self._end(run, "REJECTED" if action == "review_reject" else "PROCESSED", now)
        else:
            raise ApiProblem(409, "CONFLICT", f"{action!r} is not possible for a run that is {run.status}")
        await self.store.now()
        return run
