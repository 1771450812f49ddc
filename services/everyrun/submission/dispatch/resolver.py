"""Resolve calls whose outcome is unknown: by evidence, by the log, or by sending the chunk again after the window."""

from __future__ import annotations

from typing import Any, NamedTuple

import asyncpg

from everyrun.log.reading import end_offsets
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.submission.dispatch.protocol import (
    ChunkState,
    ClaimRevoked,
    EvidenceFound,
    NeverAnnounced,
    NotPossibleError,
    Trigger,
    WindowPassed,
    WorkerLost,
)
from everyrun.submission.dispatch.transitions import Transitions, UnknownChunkError, chunk_state
from everyrun.submission.recovery.queue_recovery import CALL_MARGIN, QueueRecovery
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "dispatch.sql")

#: An attempt is given up only after this many complete sweeps that began after the end of its window. One sweep is not
#: enough: runs can move between pages during a sweep, so the sweep can miss a run.
REQUIRED_SWEEPS = 2

#: The topics in which evidence can arrive. ``deliveries`` contains webhooks whose payload is behind a link.
_EVIDENCE_TOPICS = ("batches", "runs", "deliveries")


class _Attempt(NamedTuple):
    chunk: str
    number: int


class _Proof(NamedTuple):
    """Evidence: an attempt, and the batch of a run that names this attempt."""

    chunk: str
    attempt: int
    batch_id: str


async def mark_adopted(connection: Any, chunk: str, attempt: int, batch_id: str) -> None:
    """Store that the attempt started this batch, so that the same evidence is not applied again."""
    await connection.execute(_sql["adopted"], chunk, attempt, batch_id)


class Resolver:
    """Resolve attempts whose outcome is unknown. Several processes may do this at the same time."""

    def __init__(
        self,
        settings: Settings,
        pool: asyncpg.Pool,
        recovery: QueueRecovery,
        transitions: Transitions,
        installation: str,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._recovery = recovery
        self._transitions = transitions
        self._installation = installation
        #: For each attempt whose window is over: where the log ended when this process noticed that.
        self._ends: dict[_Attempt, dict[tuple[str, int], int]] = {}
        #: Evidence that could not be applied, with the state of the chunk at that time. If the state changes, the
        #: resolver tries again.
        self._unmatched: dict[_Proof, ChunkState] = {}

    async def resolve(self) -> None:
        """Check every attempt of unknown outcome once, and resolve those that can be resolved.

        Raises aiokafka.errors.KafkaError and asyncpg's errors.
        """
        await self._recovery.ensure_caught_up()
        await self.adopt_evidence()
        found = await self._pool.fetch(_sql["unresolved"])
        lost = [row for row in found if row["state"] == "sending"]
        over = [row for row in found if row["state"] == "in_doubt" and row["sweeps"] >= REQUIRED_SWEEPS]
        call_time = self._settings.call_timeout + CALL_MARGIN
        unannounced = await self._pool.fetch(_sql["unannounced_claims"], call_time)
        for row in unannounced:
            await self._apply(row["chunk"], ClaimRevoked(row["attempt"]))
        if lost or unannounced:
            # Read the log only after the claims were revoked. If it has no batch-requested of an attempt then, there is
            # no call: a worker that publishes this event later finds its claim revoked. Reading the log also finds
            # answers that a worker has published but not stored yet.
            await self._recovery.catch_up()
            incarnation = await self._recovery.ensure_caught_up()
            never_called = {
                row["chunk"]
                for row in unannounced
                if await self._apply(row["chunk"], NeverAnnounced(row["attempt"]), incarnation)
            }
            for row in lost:
                if row["chunk"] not in never_called:
                    await self._apply(row["chunk"], WorkerLost(row["attempt"]))
        given_up = await self._with_log_applied(over)
        if given_up:
            # More evidence may have reached the tables and the log since they were last read.
            await self.adopt_evidence()
            await self._recovery.catch_up()
            for row in given_up:
                witness = await self._pool.fetchval(_sql["witness"], row["chunk"], self._installation)
                await self._apply(row["chunk"], WindowPassed(row["attempt"], self._settings.doubt_resends, witness))

    async def _apply(self, chunk: str, trigger: Trigger, incarnation: str | None = None) -> bool:
        try:
            await self._transitions.apply(chunk, trigger, incarnation=incarnation)
        except (NotPossibleError, UnknownChunkError) as error:
            _log.info("resolved otherwise", chunk=chunk, why=str(error))
            return False
        return True

    async def _with_log_applied(self, over: list[Any]) -> list[Any]:
        """Return the attempts of ``over`` whose evidence must be in the tables by now, if there is any.

        The tables hold it once the processor has applied the log up to the point where it ended when this process
        noticed that the window was over. The current end of the log does not matter. The processor might never reach
        it, because runs keep arriving.
        """
        attempts = [_Attempt(row["chunk"], row["attempt"]) for row in over]
        if set(attempts) - self._ends.keys():
            ends = await end_offsets(self._settings, _EVIDENCE_TOPICS)
            self._ends = {attempt: self._ends.get(attempt, ends) for attempt in attempts}
        if not over:
            self._ends = {}
            return []
        rows = await self._pool.fetch(_sql["applied_up_to"], _EVIDENCE_TOPICS)
        applied = {(row["topic"], row["partition"]): row["next_offset"] for row in rows}
        return [
            row
            for row, attempt in zip(over, attempts, strict=True)
            if all(applied.get(partition, 0) >= end for partition, end in self._ends[attempt].items())
        ]

    async def adopt_evidence(self) -> None:
        """Apply the evidence: the unmatched runs whose reserved key names an attempt of this installation."""
        unmatched, self._unmatched = self._unmatched, {}
        for found in await self._pool.fetch(_sql["evidence"], self._installation):
            row = await self._pool.fetchrow(_sql["attempt"], found["chunk"])
            if row is None or (row["batch_id"] == found["batch_id"] and chunk_state(row).state == "submitted"):
                continue
            if row["state"] == "sending" and row["attempt"] == found["attempt"] and not row["overdue"]:
                # The call is still in progress, and its answer will name the batch. If no answer comes, the evidence is
                # applied after the deadline.
                continue
            proof = _Proof(found["chunk"], found["attempt"], found["batch_id"])
            if unmatched.get(proof) == chunk_state(row):
                self._unmatched[proof] = unmatched[proof]
                continue
            try:
                await self._transitions.apply(
                    proof.chunk, EvidenceFound(proof.attempt, proof.batch_id, found["run_id"])
                )
            except (NotPossibleError, UnknownChunkError) as error:
                _log.warning("the evidence matches no attempt", chunk=proof.chunk, problem=str(error))
                self._unmatched[proof] = chunk_state(row)
                continue
            _log.info("adopted", chunk=proof.chunk, attempt=proof.attempt, batch_id=proof.batch_id)
            await mark_adopted(self._pool, *proof)
