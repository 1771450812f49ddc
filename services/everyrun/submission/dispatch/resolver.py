"""Resolves calls of unknown outcome: by evidence, by the log, or by sending again when the window for it is over."""

from __future__ import annotations

from typing import Any

import asyncpg

from everyrun.log.reading import end_offsets
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.submission.dispatch.protocol import (
    ChunkState,
    Evidence,
    Happening,
    Lost,
    NeverAnnounced,
    NotPossibleError,
    Unclaimed,
    WindowPassed,
)
from everyrun.submission.dispatch.transitions import Transitions, UnknownChunkError, state_of
from everyrun.submission.recovery.queue_recovery import MARGIN, Level
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "../queue.sql")

#: So many complete sweeps must have begun after the window before an attempt is given up: a page can drift under one.
SWEEPS = 2

#: The topics that could hold a run that names an attempt: a webhook whose payload is behind a link lies in deliveries.
_WITNESSES = ("batches", "runs", "deliveries")


class Resolver:
    """Looks at attempts of unknown outcome; several processes may."""

    def __init__(
        self, settings: Settings, pool: asyncpg.Pool, level: Level, transitions: Transitions, installation: str
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._level = level
        self._transitions = transitions
        self._installation = installation
        #: Where the log ended when the window of an attempt was found to be over.
        self._ends: dict[tuple[str, int], dict[tuple[str, int], int]] = {}
        #: Evidence that fitted no attempt, and the state that the chunk was in: tried again once that is another.
        self._refused: dict[tuple[str, int, str], ChunkState] = {}

    async def resolve(self) -> None:
        """Look once at every attempt of unknown outcome.

        Raises aiokafka.errors.KafkaError and asyncpg's errors.
        """
        await self._level.check()
        await self.adopt()
        found = await self._pool.fetch(_sql["unresolved"])
        lost = [row for row in found if row["state"] == "sending"]
        over = [row for row in found if row["state"] == "in_doubt" and row["sweeps"] >= SWEEPS]
        call_time = self._settings.call_timeout + MARGIN
        unannounced = await self._pool.fetch(_sql["unannounced_claims"], call_time)
        for row in unannounced:
            await self._take(row["chunk"], Unclaimed(row["attempt"]))
        if lost or unannounced:
            # The log is read after the claims are gone: what it has not by now it never has, but from a worker that
            # then finds its claim gone. And a worker that told it of the answer, and did not come to keep it, is not
            # lost.
            await self._level.advance()
            incarnation = await self._level.check()
            never = {
                row["chunk"]
                for row in unannounced
                if await self._take(row["chunk"], NeverAnnounced(row["attempt"]), incarnation)
            }
            for row in lost:
                if row["chunk"] not in never:
                    await self._take(row["chunk"], Lost(row["attempt"]))
        ripe = await self._looked_at_in_full(over)
        if ripe:
            # What came into the tables, and into the log, since the evidence was last looked at.
            await self.adopt()
            await self._level.advance()
            for row in ripe:
                witness = await self._pool.fetchval(_sql["witness"], row["chunk"], self._installation)
                await self._take(row["chunk"], WindowPassed(row["attempt"], self._settings.doubt_resends, witness))

    async def _take(self, chunk: str, happening: Happening, incarnation: str | None = None) -> bool:
        try:
            await self._transitions.take(chunk, happening, incarnation=incarnation)
        except (NotPossibleError, UnknownChunkError) as error:
            _log.info("resolved otherwise", chunk=chunk, why=str(error))
            return False
        return True

    async def _looked_at_in_full(self, over: list[Any]) -> list[Any]:
        """Of the attempts whose window is over, those for which all that the log held by then is in the tables.

        By then, not by now: while runs flow the tables never reach the log's present end.
        """
        attempts = [(row["chunk"], row["attempt"]) for row in over]
        if set(attempts) - self._ends.keys():
            ends = await end_offsets(self._settings, _WITNESSES)
            self._ends = {attempt: self._ends.get(attempt, ends) for attempt in attempts}
        if not over:
            self._ends = {}
            return []
        rows = await self._pool.fetch(_sql["applied_up_to"], _WITNESSES)
        applied = {(row["topic"], row["partition"]): row["next_offset"] for row in rows}
        return [
            row
            for row, attempt in zip(over, attempts, strict=True)
            if all(applied.get(place, 0) >= end for place, end in self._ends[attempt].items())
        ]

    async def adopt(self) -> None:
        """Runs that the projection knows no batch for, but whose key names an attempt of ours: it was taken."""
        refused, self._refused = self._refused, {}
        for found in await self._pool.fetch(_sql["evidence"], self._installation):
            row: Any = await self._pool.fetchrow(_sql["attempt"], found["chunk"])
            if row is None or (row["batch_id"] == found["batch_id"] and state_of(row).state == "sent"):
                continue
            if row["state"] == "sending" and row["attempt"] == found["attempt"] and not row["overdue"]:
                continue  # its call has not ended: the answer will say the same, or the deadline passes
            key = (found["chunk"], found["attempt"], found["batch_id"])
            if refused.get(key) == state_of(row):
                self._refused[key] = refused[key]
                continue
            try:
                await self._transitions.take(
                    found["chunk"], Evidence(found["attempt"], found["batch_id"], found["run_id"])
                )
            except (NotPossibleError, UnknownChunkError) as error:
                _log.warning("evidence that fits no attempt", chunk=found["chunk"], problem=str(error))
                self._refused[key] = state_of(row)
                continue
            _log.info("adopted", chunk=found["chunk"], attempt=found["attempt"], batch_id=found["batch_id"])
            await self._pool.execute(_sql["adopted"], *key)
