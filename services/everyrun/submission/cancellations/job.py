"""Carry out cancellations: cancel what waits in the queue, and cancel at Extend what runs.

Several processes may do this at the same time. A process can end at any point: the next one begins with what the queue
and Extend know then. To cancel a chunk or a run again changes nothing.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
from aiokafka.errors import KafkaError

from everyrun.extend.client import Extend
from everyrun.redact import describe
from everyrun.store.sql import beside
from everyrun.submission.cancellations.outcomes import ExtendProblemError
from everyrun.submission.cancellations.runs import RunCanceller
from everyrun.submission.cancellations.scope import parts_at, read_multirange
from everyrun.submission.dispatch.protocol import Cancelled, CutRequested, NotPossibleError, Trigger
from everyrun.submission.dispatch.transitions import Transitions, UnknownChunkError
from everyrun.submission.recovery.queue_recovery import QueueRecovery
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "cancellations.sql")

#: How long a worker may work on a cancellation without a sign of life before another worker takes it, in seconds.
LEASE = 60.0


class CancellationJob:
    """Carry out the open cancellations."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        extend: Extend,
        recovery: QueueRecovery,
        transitions: Transitions,
        installation: str,
        wake: asyncio.Event,
    ) -> None:
        self._pool = pool
        self._recovery = recovery
        self._transitions = transitions
        #: Set when there is a new cancellation.
        self.wake = wake
        self._runs = RunCanceller(pool, extend, installation, LEASE)

    async def work(self) -> None:
        """Look once at each open cancellation that is due. Raises asyncpg's errors, KafkaError and ForeignLogError."""
        while (row := await self._pool.fetchrow(_sql["take"], LEASE)) is not None:
            await self._look(row)

    async def _look(self, row: Any) -> None:
        cancellation_id, progressed, problem = row["cancellation_id"], False, None
        try:
            progressed = await self._cancel_unsent(cancellation_id, row["positions"])
            progressed = await self._runs.cancel(cancellation_id) or progressed
        except ExtendProblemError as error:
            problem = str(error)
            _log.warning("runs cannot be cancelled at Extend now", cancellation=cancellation_id, error=problem)
        except KafkaError as error:
            await self._pool.execute(_sql["end_look"], cancellation_id, False, f"Kafka: {describe(error)}", False)
            raise
        ended = problem is None and not await self._pool.fetchval(_sql["is_open"], cancellation_id)
        await self._pool.execute(_sql["end_look"], cancellation_id, progressed, problem, ended)
        if ended:
            _log.info("cancellation ended", cancellation=cancellation_id)

    async def _cancel_unsent(self, cancellation_id: str, positions: Any) -> bool:
        """Cancel the chunks that wait, and cut those of which only some inputs are cancelled. Return if there were any.

        The parts of a chunk that was cut are cancelled here, too.
        """
        progressed, failed = False, set[str]()
        while True:
            # A restored queue may take a chunk for unsent that was sent, so first read the log.
            incarnation = await self._recovery.ensure_caught_up()
            rows = await self._pool.fetch(_sql["to_cancel"], cancellation_id)
            if not (rows := [row for row in rows if row["chunk"] not in failed]):
                return progressed
            for row in rows:
                trigger: Trigger = Cancelled()
                if not row["whole"]:
                    chunk = (row["first_position"], row["last_position"])
                    trigger = CutRequested(parts_at(chunk, read_multirange(positions)))
                try:
                    await self._transitions.apply(row["chunk"], trigger, incarnation=incarnation)
                    progressed = True
                    await self._pool.execute(_sql["keep"], cancellation_id, LEASE)
                except (NotPossibleError, UnknownChunkError) as error:
                    _log.info("cancelled otherwise", chunk=row["chunk"], why=str(error))
                    failed.add(row["chunk"])
