"""Hold the emulator's state (batches, runs, files and counters), and move runs through their statuses."""

from __future__ import annotations

import asyncio
import heapq
import time
from pathlib import Path
from typing import Any

import msgspec

from everyrun.emulator.faults import Dice
from everyrun.emulator.files import Files
from everyrun.emulator.runs import FINAL, Plan, Run, digest
from everyrun.emulator.store import Store, Write, run_write
from everyrun.emulator.timeline import Timeline
from everyrun.emulator.validate import ApiProblem, invalid, not_found
from everyrun.emulator.webhooks import Webhooks

#: The published versions of the only workflow, oldest first, and its draft.
VERSIONS = ("1", "2")
DRAFT = "draft"
#: Seconds between CANCELLING and CANCELLED.
_CANCEL_SECONDS = 0.2


class Engine:
    """The state and the actions behind the API. It belongs to one process and one event loop.

    A method that changes something for a caller returns only after the change is committed. The exception is
    ``mark_answered``, which does not wait.
    """

    def __init__(
        self,
        store: Store,
        plan: Plan,
        dice: Dice,
        webhooks: Webhooks,
        workflow_id: str,
        workflow_made_at: float,
        folder: Path,
    ) -> None:
        self.store = store
        self.dice = dice
        self.workflow_id = workflow_id
        self.workflow_made_at = workflow_made_at
        self._plan = plan
        self.webhooks = webhooks
        self.runs: list[Run] = []
        self.by_id: dict[str, Run] = {}
        self.by_batch: dict[str, list[Run]] = {}
        self.files = Files(store, folder, webhooks.links, self.runs, self.by_id)
        self.requests = {"get": 0, "write": 0, "run": 0, **store.documents("counter").get("requests", {})}
        self.refused: dict[str, int] = store.documents("counter").get("refused", {})
        self._counted: dict[str, dict[str, int]] = {}
        self._due: list[tuple[float, int]] = []
        self._wake = asyncio.Event()
        self._open_runs = 0
        #: The largest number of runs that were open at the same time since this process started.
        self.most_open_runs = 0
        for run in store.runs():
            self._add(run)
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

    def _add(self, run: Run) -> None:
        self.runs.append(run)
        self.by_id[run.id] = run
        if run.status not in FINAL and not run.deleted:
            self._count_open(1)
        if run.batch_id is not None:
            self.by_batch.setdefault(run.batch_id, []).append(run)

    def _count_open(self, change: int) -> None:
        self._open_runs += change
        self.most_open_runs = max(self.most_open_runs, self._open_runs)

    def _schedule(self, run: Run) -> None:
        at = run.starts_at if run.status == "PENDING" else run.ends_at
        heapq.heappush(self._due, (at, run.number))
        self._wake.set()

    def resolve_version(self, workflow_id: str, version: str | None) -> str:
        """Return the version to run: the requested one, or by default the newest published one.

        Raises ApiProblem 404 if the workflow or the version does not exist. The status 404 is from Extend's docs of
        2025-04-21; today's docs name no status.
        """
        if workflow_id != self.workflow_id:
            raise not_found(f"workflow {workflow_id}")
        if version is None:
            return VERSIONS[-1]
        if version not in (*VERSIONS, DRAFT):
            raise not_found(f"version {version} of workflow {workflow_id}")
        return version

    async def create_batch(
        self, workflow_id: str, version: str, priority: int, inputs: list[tuple[bytes, bytes]]
    ) -> str:
        """Create a batch, and return its id once its runs are committed."""
        now = self._now()
        batch_id = f"batch_{digest(self._plan.seed, 'batch', len(self.by_batch))}"
        created = [self._new_run(batch_id, workflow_id, version, file, metadata, now) for file, metadata in inputs]
        head = (batch_id, workflow_id, version, priority, now, len(created), 0)
        await self.store.commit(("insert into batches values (?, ?, ?, ?, ?, ?, ?)", head), *map(run_write, created))
        for run in created:
            self._schedule(run)
        return batch_id

    async def create_run(self, workflow_id: str, version: str, file: bytes, metadata: bytes) -> Run:
        """Create a single run, which is PROCESSING at once (SDK 1.20.0, workflow_runs/client.py create)."""
        now = self._now()
        run = self._new_run(None, workflow_id, version, file, metadata, now)
        run.status, run.starts_at = "PROCESSING", now
        await self.store.commit(run_write(run))
        self._schedule(run)
        return run

    def _now(self) -> float:
        """Return the creation time of a new run.

        It is never earlier than the creation time of the last run, even if the clock was set back. This keeps ``runs``
        in order of creation.
        """
        return max(time.time(), self.runs[-1].created_at if self.runs else 0.0)

    def _new_run(
        self, batch_id: str | None, workflow_id: str, version: str, file: bytes, metadata: bytes, now: float
    ) -> Run:
        number = len(self.runs)
        run = Run(number, self._plan.run_id(number), batch_id, workflow_id, version, file, metadata, now)
        self._plan.schedule(run, now)
        self._add(run)
        self.timeline.touch(run)
        return run

    def mark_answered(self, batch_id: str) -> None:
        """Record that the caller received the batchId."""
        self.store.enqueue(("update batches set answered = 1 where id = ?", (batch_id,)))

    async def advance_runs(self) -> None:
        """Change the status of each run when the change is due. Never returns."""
        while True:
            now = time.time()
            advanced = 0
            while self._due and self._due[0][0] <= now:
                _, number = heapq.heappop(self._due)
                self._advance(self.runs[number], now)
                advanced += 1
                if advanced % 200 == 0:
                    await asyncio.sleep(0)
            self._wake.clear()
            wait = max(self._due[0][0] - time.time(), 0.0) if self._due else 3600.0
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _advance(self, run: Run, now: float) -> None:
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
        """Give the run a status for which Extend sends a webhook, and send it."""
        if status in FINAL and run.status not in FINAL:
            self._count_open(-1)
        run.status, run.ends_at = status, at
        self._changed(run)
        self.webhooks.announce(run)

    def find(self, run_id: str) -> Run:
        """Return the run. Raises ApiProblem 404 if it does not exist or was deleted."""
        run = self.by_id.get(run_id)
        if run is None or run.deleted:
            raise not_found(f"workflow run {run_id}")
        return run

    async def cancel(self, run: Run) -> None:
        """Make the run CANCELLING now, and CANCELLED a moment later.

        Only a run that is PENDING or PROCESSING can be cancelled. For other runs, Extend's docs name no HTTP status;
        the emulator answers 400.
        """
        if run.status not in ("PENDING", "PROCESSING"):
            raise invalid(f"a run that is {run.status} cannot be cancelled")
        if run.status == "PENDING":
            # Show that the run never started.
            run.starts_at = 0.0
        run.status, run.ends_at = "CANCELLING", time.time() + _CANCEL_SECONDS
        self._changed(run)
        self._schedule(run)
        await self.store.commit()

    async def update(self, run: Run, metadata: dict[str, Any]) -> None:
        """Replace the metadata of the run."""
        run.metadata = msgspec.json.encode(metadata)
        self.timeline.touch(run)
        await self.store.commit(run_write(run))

    async def delete(self, run: Run) -> None:
        """Delete the run permanently. Like Extend, send no webhook about it."""
        if run.status not in FINAL:
            self._count_open(-1)
        run.deleted = True
        self._changed(run)
        await self.store.commit()

    async def act(self, run_id: str, action: Any) -> Run:
        """Do what a person does in the dashboard: rerun, review_approve, review_reject or delete. Raises ApiProblem."""
        run = self.find(run_id)
        now = time.time()
        if action == "delete":
            await self.delete(run)
        elif action == "rerun" and run.status in FINAL:
            run.next_generation()
            run.status = "PROCESSING"
            self._count_open(1)
            self._plan.schedule(run, now)
            self._changed(run)
            self._schedule(run)
        elif action in ("review_approve", "review_reject") and run.status == "NEEDS_REVIEW":
            run.next_generation()
            run.reviewed_at = now
            run.note = "rejected by a reviewer" if action == "review_reject" else None
            self._end(run, "REJECTED" if action == "review_reject" else "PROCESSED", now)
        else:
            raise ApiProblem(409, "CONFLICT", f"{action!r} is not possible for a run that is {run.status}")
        await self.store.commit()
        return run
