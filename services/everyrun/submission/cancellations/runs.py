"""Cancel the runs of a cancellation at Extend, batch by batch, and store the outcome of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import asyncpg
import msgspec

from everyrun.extend import reserved
from everyrun.extend.client import Extend, ExtendError
from everyrun.extend.run_lists import RunPages
from everyrun.failpoints import hit
from everyrun.projection.rules.match import by_fingerprint, fingerprint
from everyrun.store.sql import beside
from everyrun.submission.cancellations.outcomes import (
    ExtendProblemError,
    Outcome,
    outcome_of_error,
    outcome_of_status,
)

_sql = beside(__file__, "cancellations.sql")

#: Number of requests to Extend that are in progress at the same time. The request budget limits their rate.
_AT_ONCE = 8
#: After this many runs, their outcomes are stored.
_GROUP = 50
#: A look at a cancellation ends after about this many seconds.
SECONDS_AT_ONCE = 5.0
#: Maximum number of runs whose inputs are remembered.
_MAX_REMEMBERED = 50_000
#: How long a request to Extend is retried, in seconds.
_WITHIN = 30.0


class RunOutcome(NamedTuple):
    """The outcome for a run, in the order of the parameters of ``save_outcomes``.

    ``outcome`` is None if Extend refused to cancel the run and the next list must tell why.
    """

    run_id: str
    input_id: str | None
    outcome: Outcome | None
    refusals: int
    detail: str | None


class RunCanceller:
    """Cancels the runs of cancellations."""

    def __init__(self, pool: asyncpg.Pool, extend: Extend, installation: str, lease: float) -> None:
        self._pool = pool
        self._extend = extend
        self._lists = RunPages(extend)
        self._installation = installation
        self._lease = lease
        #: Inputs of runs that were fetched, by run id. Only saves requests.
        self._inputs: dict[str, str | None] = {}

    async def cancel(self, cancellation_id: str) -> bool:
        """Cancel runs that the cancellation still has in progress; return True if there was anything new.

        Stops after about SECONDS_AT_ONCE, so that other cancellations get their turn. Raises ExtendProblemError if
        Extend cannot be asked, or does not allow it, and asyncpg's errors.
        """
        progressed, ends = False, time.monotonic() + SECONDS_AT_ONCE
        if len(self._inputs) > _MAX_REMEMBERED:
            self._inputs.clear()
        for row in await self._pool.fetch(_sql["batches"], cancellation_id):
            if time.monotonic() > ends:
                return True
            if row["whole"]:
                # All runs of the batch are cancelled, so it does not matter which input a run belongs to.
                if row["done"] < row["size"]:
                    progressed = await self._cancel_all(cancellation_id, row["batch_id"], ends) or progressed
            else:
                progressed = await self._cancel_some(cancellation_id, row["batch_id"], ends) or progressed
        return progressed

    async def _cancel_all(self, cancellation_id: str, batch_id: str, ends: float) -> bool:
        known = await self._outcomes(cancellation_id, batch_id)
        listed = await self._list(batch_id)
        found, wanted = [], []
        for run_id, status in listed.items():
            outcome = outcome_of_status(status)
            if run_id in known and known[run_id][0] is not None:
                continue
            if outcome is None:
                wanted.append((run_id, None))
            else:
                found.append(RunOutcome(run_id, None, outcome, 0, None))
        await self._save(cancellation_id, batch_id, found)
        return await self._cancel_runs(cancellation_id, batch_id, wanted, known, ends) or bool(found)

    async def _cancel_some(self, cancellation_id: str, batch_id: str, ends: float) -> bool:
        rows = await self._pool.fetch(_sql["open_rows"], cancellation_id, batch_id)
        if not rows:
            return False
        known = await self._outcomes(cancellation_id, batch_id)
        listed = await self._list(batch_id)
        wanted = {row["run_id"]: row["input_id"] for row in rows if row["run_id"] is not None}
        without_run = {row["input_id"] for row in rows if row["run_id"] is None}
        if without_run:
            running = [run_id for run_id, status in listed.items() if outcome_of_status(status) is None]
            wanted |= await self._identify(batch_id, running, without_run)
        found = [
            RunOutcome(run_id, input_id, outcome, 0, None)
            for run_id, input_id in wanted.items()
            if run_id in listed and (outcome := outcome_of_status(listed[run_id])) is not None
        ]
        await self._save(cancellation_id, batch_id, found)
        ended = {one.run_id for one in found}
        rest = [(run_id, input_id) for run_id, input_id in wanted.items() if run_id not in ended]
        return await self._cancel_runs(cancellation_id, batch_id, rest, known, ends) or bool(found)

    async def _identify(self, batch_id: str, running: Sequence[str], wanted: Collection[str]) -> dict[str, str]:
        """Return which of the runs belong to the inputs in ``wanted``: input ids by run id.

        Lists show no metadata, so each run must be fetched whose input the result tables do not have.
        """
        known = {row["run_id"] for row in await self._pool.fetch(_sql["known_runs"], batch_id)}
        registered: Any = await self._pool.fetchrow(_sql["registered_inputs"], batch_id)
        inputs = registered and by_fingerprint(zip(registered["fingerprints"], registered["input_ids"], strict=True))
        found: dict[str, str] = {}
        for run_id in running:
            if run_id in known or len(found) == len(wanted):
                continue
            if run_id not in self._inputs:
                try:
                    run = msgspec.json.decode(await self._extend.get_run(run_id, within=_WITHIN))
                except ExtendError as error:
                    if error.from_extend and error.status in (404, 410):
                        continue
                    raise ExtendProblemError(str(error)) from None
                self._inputs[run_id] = input_of(run.get("metadata"), self._installation, inputs)
            input_id = self._inputs[run_id]
            if input_id is not None and input_id in wanted:
                found[run_id] = input_id
        return found

    async def _cancel_runs(
        self,
        cancellation_id: str,
        batch_id: str,
        runs: Sequence[tuple[str, str | None]],
        known: Mapping[str, tuple[Outcome | None, int]],
        ends: float,
    ) -> bool:
        for start in range(0, len(runs), _GROUP):
            if start and time.monotonic() > ends:
                break
            free = asyncio.Semaphore(_AT_ONCE)
            tasks = [
                asyncio.create_task(self._cancel_run(free, run_id, input_id, known.get(run_id, (None, 0))[1]))
                for run_id, input_id in runs[start : start + _GROUP]
            ]
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            hit("cancel.after_call")
            await self._save(cancellation_id, batch_id, [one for one in ended if isinstance(one, RunOutcome)])
            for one in ended:
                if isinstance(one, BaseException):
                    raise one
        return bool(runs)

    async def _cancel_run(self, free: asyncio.Semaphore, run_id: str, input_id: str | None, before: int) -> RunOutcome:
        async with free:
            try:
                run = msgspec.json.decode(await self._extend.cancel_run(run_id, within=_WITHIN))
            except ExtendError as error:
                outcome = outcome_of_error(error, before + 1)
                return RunOutcome(run_id, input_id, outcome, before + 1, str(error))
        key = reserved.read(run.get("metadata"))
        if key is not None and key.installation == self._installation:
            input_id = key.input
        return RunOutcome(run_id, input_id, outcome_of_status(run.get("status")), before, None)

    async def _list(self, batch_id: str) -> dict[str, object]:
        """Return the status of each run of a batch, by run id. Raises ExtendProblemError."""
        found = {}
        try:
            async for page in self._lists.pages(batchId=batch_id):
                for entry in page.data:
                    if isinstance(entry, dict) and isinstance(entry.get("id"), str):
                        found[entry["id"]] = entry.get("status")
        except (ExtendError, msgspec.DecodeError) as error:
            raise ExtendProblemError(str(error)) from None
        return found

    async def _outcomes(self, cancellation_id: str, batch_id: str) -> dict[str, tuple[Outcome | None, int]]:
        rows = await self._pool.fetch(_sql["outcomes_of"], cancellation_id, batch_id)
        return {row["run_id"]: (row["outcome"], row["refusals"]) for row in rows}

    async def _save(self, cancellation_id: str, batch_id: str, outcomes: Sequence[RunOutcome]) -> None:
        """Store outcomes, and show that this worker is still at work."""
        if outcomes:
            columns = [list(column) for column in zip(*outcomes, strict=True)]
            await self._pool.execute(_sql["save_outcomes"], cancellation_id, batch_id, *columns)
            await self._pool.execute(_sql["keep"], cancellation_id, self._lease)


def input_of(metadata: Any, installation: str, inputs: Mapping[str, Sequence[str]] | None) -> str | None:
    """Return the input of a run with these metadata; None if they do not tell. Pure.

    ``inputs`` holds the ids of a registered batch's inputs, by the fingerprint of their metadata. None for other
    batches.
    """
    if inputs is None:
        key = reserved.read(metadata)
        return key.input if key is not None and key.installation == installation else None
    named = inputs.get(fingerprint(msgspec.json.encode(metadata)) or "", ())
    return named[0] if len(named) == 1 else None
