"""Carries out the protocol: claims chunks, calls Extend, tells the log, keeps the state; resolves what is unknown."""

from __future__ import annotations

import asyncio
import os
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
import msgspec
from aiokafka.errors import KafkaError
from msgspec.structs import replace

from everyrun.extend import reserved
from everyrun.extend.budget import RUN
from everyrun.extend.client import Extend
from everyrun.failpoints import hit
from everyrun.log import events
from everyrun.log.cloudevents import Record, record, timestamp
from everyrun.log.producer import Log
from everyrun.log.reader import end_offsets
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.submission.classify import (
    Blocked,
    Rejected,
    Returned,
    Taken,
    Verdict,
    classify_failure,
    classify_response,
)
from everyrun.submission.protocol import (
    ChunkState,
    Claimed,
    Evidence,
    Expired,
    Happening,
    Lost,
    NotPossibleError,
    Say,
    Step,
    WindowPassed,
    step,
)
from everyrun.submission.rows import redact_file
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "queue.sql")
_encode = msgspec.json.Encoder().encode

SOURCE = "/everyrun/submission"
#: Postgres or Kafka is away, for now.
AWAY = (asyncpg.PostgresError, asyncpg.InterfaceError, KafkaError, OSError)
#: A call that was begun before its deadline has ended this long after its time-out, in seconds.
_MARGIN = 2.0
#: How long a chunk that was not taken waits when Extend does not say, in seconds.
_RETURNED_WAIT = 1.0


class Dispatcher:
    """Sends chunks with several workers; one per process."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, extend: Extend, log: Log, installation: str) -> None:
        self._settings = settings
        self._pool = pool
        self._extend = extend
        self._log = log
        self._installation = installation
        self._owner = f"{socket.gethostname()}/{os.getpid()}"
        self.poke = asyncio.Event()

    async def work(self, stop: asyncio.Event) -> None:
        """Send chunks one after another until ``stop`` is set; a call under way is finished."""
        while not stop.is_set():
            try:
                if not await self._send_one():
                    self.poke.clear()
                    await _wait_any(stop, self.poke, seconds=0.25)
            except AWAY as error:
                _log.warning("the dispatcher waits", error=f"{type(error).__name__}: {error}")
                await _wait_any(stop, seconds=1.0)
            except Exception:
                _log.exception("a chunk could not be sent; it is resolved after its deadline")
                await _wait_any(stop, seconds=1.0)

    async def _send_one(self) -> bool:
        if not await self._pool.fetchval(_sql["something_waits"]):
            return False
        await self._extend.budget(RUN)
        now = datetime.now(UTC)
        begin_by = now + timedelta(seconds=self._settings.dispatch_deadline)
        ended_by = begin_by + timedelta(seconds=self._settings.call_timeout + _MARGIN)
        hit("dispatcher.before_claim")
        chunk = await self._pool.fetchval(_sql["claim"], self._owner, ended_by)
        if chunk is None:
            return False
        hit("dispatcher.after_claim")
        row: Any = await self._pool.fetchrow(_sql["attempt"], chunk)
        before = ChunkState("waiting", row["attempt"] - 1, row["resends"])
        claimed = step(before, Claimed())
        inputs = await self._inputs(row)
        try:
            await self._say(row, claimed, inputs, deadline=begin_by)
        except AWAY:
            # Nothing was sent: the chunk is not in doubt, whether or not the event came to be in the log.
            again = replace(claimed.after, state="waiting", reason="Kafka did not acknowledge batch-requested")
            await self._keep(chunk, row["attempt"], again, ("sending",), now + timedelta(seconds=1))
            raise
        hit("dispatcher.after_intent")
        body = self._body(row, inputs)
        if datetime.now(UTC) > begin_by:
            happening: Happening = Expired()
        else:
            happening = await self._call(body)
        await self._happen(row, claimed.after, happening, inputs)
        return True

    async def _call(self, body: bytes) -> Verdict:
        hit("dispatcher.before_post")
        try:
            verdict = classify_response(await self._extend.create_batch(body))
        except httpx.HTTPError as error:
            verdict = classify_failure(error)
        hit("dispatcher.after_post")
        return verdict

    async def _happen(
        self, row: asyncpg.Record, chunk: ChunkState, happening: Happening, inputs: list[events.Input]
    ) -> None:
        """Say what the happening means, then keep the state."""
        done = step(chunk, happening)
        expected: tuple[str, ...] = ("in_doubt",) if isinstance(happening, WindowPassed) else ("sending",)
        if isinstance(happening, Taken | Rejected | Returned | Blocked | Expired):
            # The answer came after all, though the attempt was given to doubt meanwhile.
            expected = ("sending", "in_doubt")
        if done.after.state not in ("sent", "refused"):
            _log.info(
                "chunk", chunk=row["chunk"], attempt=chunk.attempt, state=done.after.state, reason=done.after.reason
            )
        hit("dispatcher.before_produce")
        await self._say(row, done, inputs, happening=happening)
        hit("dispatcher.after_produce")
        not_before = None
        if isinstance(happening, Returned):
            wait = _RETURNED_WAIT if happening.wait is None else happening.wait
            not_before = datetime.now(UTC) + timedelta(seconds=wait)
            if happening.limited:
                await self._extend.pause(RUN, wait)
        if done.block:
            await self._pool.execute(_sql["pause_workflow"], row["workflow_id"], done.after.reason)
        await self._keep(row["chunk"], chunk.attempt, done.after, expected, not_before)
        hit("dispatcher.after_row")

    async def _keep(
        self, chunk: str, attempt: int, after: ChunkState, expected: tuple[str, ...], not_before: datetime | None = None
    ) -> None:
        """Keep a chunk's state, if it is still in one of the expected ones; waits for a database that is away."""
        deadline = None
        if after.state == "in_doubt":
            deadline = datetime.now(UTC) + timedelta(seconds=self._settings.doubt_window)
        kept = (after.state, after.resends, not_before, after.reason, deadline, after.batch_id)
        while True:
            try:
                await self._pool.execute(_sql["keep"], chunk, attempt, *kept, list(expected))
                return
            except AWAY as error:
                _log.warning("waiting to keep a chunk's state", chunk=chunk, error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.5)

    async def _inputs(self, row: asyncpg.Record) -> list[events.Input]:
        where = (row["submission_id"], row["first_position"], row["last_position"])
        records = await self._pool.fetch(_sql["chunk_inputs"], *where)
        return [
            events.Input(
                input_id=f"{row['submission_id']}:{r['external_id']}",
                external_id=r["external_id"],
                position=r["position"],
                file=msgspec.json.decode(r["file"]),
                metadata=msgspec.json.decode(r["metadata"]),
            )
            for r in records
        ]

    def _body(self, row: asyncpg.Record, inputs: list[events.Input]) -> bytes:
        """The batch as Extend takes it (SDK 1.20.0, workflow_runs/client.py create_batch)."""
        workflow = {"id": row["workflow_id"]}
        if row["workflow_version"] is not None:
            workflow["version"] = row["workflow_version"]
        sent = [
            {
                "file": given.file,
                "metadata": reserved.mark(
                    given.metadata,
                    reserved.Reserved(self._installation, given.input_id, row["chunk"], row["attempt"], given.position),
                ),
            }
            for given in inputs
        ]
        return _encode({"workflow": workflow, "inputs": sent, "priority": row["priority"]})

    async def _say(
        self,
        row: asyncpg.Record,
        done: Step,
        inputs: list[events.Input],
        *,
        happening: Happening | None = None,
        deadline: datetime | None = None,
    ) -> None:
        now = timestamp(datetime.now(UTC))
        await self._log.append([self._event(row, say, done, inputs, happening, deadline, now) for say in done.say])

    def _event(
        self,
        row: asyncpg.Record,
        say: Say,
        done: Step,
        inputs: list[events.Input],
        happening: Happening | None,
        deadline: datetime | None,
        now: str,
    ) -> Record:
        head: dict[str, Any] = {"submission_id": row["submission_id"], "chunk": row["chunk"], "attempt": say.attempt}
        sent_to: dict[str, Any] = {name: row[name] for name in ("workflow_id", "workflow_version", "priority")}
        reason = done.after.reason or "no evidence within the window"
        key = row["chunk"]
        event: Any
        match say.kind:
            case "batch-requested":
                ids = [given.input_id for given in inputs]
                by = timestamp(deadline) if deadline else now
                event = events.BatchRequested(
                    **head, **sent_to, installation=self._installation, deadline=by, input_ids=ids
                )
            case "batch-returned":
                event = events.BatchReturned(**head, reason=reason)
            case "batch-in-doubt":
                event = events.BatchInDoubt(**head, reason=reason)
            case "doubt-resent":
                event = events.DoubtResent(**head, reason=reason, resends=done.after.resends, by=None)
            case "batch-rejected":
                assert isinstance(happening, Rejected)
                refusal: dict[str, Any] = {
                    "status": happening.status,
                    "code": happening.code,
                    "message": happening.message,
                }
                event = events.BatchRejected(**head, **sent_to, **refusal, rejected_at=now, inputs=_shown(inputs))
            case "batch-submitted":
                assert isinstance(happening, Taken | Evidence)
                key = happening.batch_id
                proof = f"run {happening.run_id}" if isinstance(happening, Evidence) else "answer"
                event = events.BatchSubmitted(
                    **head, **sent_to, batch_id=key, evidence=proof, submitted_at=now, inputs=_shown(inputs)
                )
        identifier = f"{row['chunk']}/{say.attempt}/{say.kind}"
        if say.kind == "batch-submitted":
            identifier += f"/{key}"
        return record("batches", event, key=key, id=identifier, source=SOURCE, time=now, subject=row["chunk"])

    async def resolve(self) -> None:
        """Look once at every attempt of unknown outcome: evidence, a worker that is gone, a window that passed."""
        await self._adopt()
        await self._pool.execute(_sql["take_logged_outcome"])
        for found in await self._pool.fetch(_sql["unresolved"]):
            row: Any = await self._pool.fetchrow(_sql["attempt"], found["chunk"])
            if (row["state"], row["attempt"]) != (found["state"], found["attempt"]):
                continue
            happening: Happening = Lost()
            if row["state"] == "in_doubt":
                if not await self._projection_is_current():
                    # Evidence may lie in the log, not applied yet: the window is not over.
                    later = datetime.now(UTC) + timedelta(seconds=1)
                    await self._pool.execute(_sql["wait_longer"], found["chunk"], found["attempt"], later)
                    continue
                happening = WindowPassed(self._settings.doubt_resends)
            await self._happen(row, _state(row), happening, [])

    async def _projection_is_current(self) -> bool:
        """Whether everything that is in the log now has been applied to the tables that evidence is looked for in."""
        ends = await end_offsets(self._settings, ("batches", "runs"))
        rows = await self._pool.fetch(_sql["applied_up_to"])
        applied = {(row["topic"], row["partition"]): row["next_offset"] for row in rows}
        return all(applied.get(position, 0) >= end for position, end in ends.items())

    async def _adopt(self) -> None:
        """Runs that the projection knows no batch for, but whose key names an attempt of ours: it was taken."""
        for found in await self._pool.fetch(_sql["evidence"], self._installation):
            if found["chunk"] is None:
                continue
            row = await self._pool.fetchrow(_sql["attempt"], found["chunk"])
            if row is None or row["batch_id"] == found["batch_id"]:
                continue
            if row["state"] == "sending" and row["attempt"] == found["attempt"] and row["deadline"] > datetime.now(UTC):
                continue  # its call has not ended: the answer will say the same, or the deadline passes
            if await self._pool.fetchval(_sql["is_adopted"], found["chunk"], found["attempt"]) is not None:
                continue
            evidence = Evidence(found["attempt"], found["batch_id"], found["run_id"])
            try:
                done = step(_state(row), evidence)
            except NotPossibleError as error:
                _log.warning("evidence that fits no attempt", chunk=found["chunk"], problem=str(error))
                continue
            _log.info("adopted", chunk=found["chunk"], attempt=found["attempt"], batch_id=found["batch_id"])
            hit("adopt.before_produce")
            await self._say(row, done, await self._inputs(row), happening=evidence)
            hit("adopt.after_produce")
            if done.after.state != row["state"]:
                await self._keep(found["chunk"], row["attempt"], done.after, (row["state"],))
            await self._pool.execute(_sql["adopt"], found["chunk"], found["attempt"], found["batch_id"])
            hit("adopt.after_row")


def _state(row: asyncpg.Record) -> ChunkState:
    return ChunkState(row["state"], row["attempt"], row["resends"], row["batch_id"])


def _shown(inputs: list[events.Input]) -> list[events.Input]:
    return [msgspec.structs.replace(given, file=redact_file(given.file)) for given in inputs]


async def _wait_any(*waits: asyncio.Event, seconds: float) -> None:
    tasks = [asyncio.create_task(event.wait()) for event in waits]
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
