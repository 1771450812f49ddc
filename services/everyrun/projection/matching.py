"""Which inputs the runs of a poll belong to: what :func:`everyrun.projection.match.match` needs is read, and asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import cast

import asyncpg
from msgspec.structs import replace

from everyrun.projection import attempts, tables
from everyrun.projection.decode import Fact
from everyrun.projection.fingerprint import fingerprint
from everyrun.projection.match import Batch, Unmatched, by_fingerprint, match
from everyrun.projection.merge import Binding, Run, merge
from everyrun.store.sql import beside

_sql = beside(__file__, "apply.sql")


class Matching:
    """The runs of some polls, those that waited for the batches in them included.

    ``runs`` are the runs seen, ``metadata`` the different metadata of each, in the order of the log.
    """

    def __init__(
        self, connection: asyncpg.Connection, runs: Mapping[str, Run], metadata: Mapping[str, Sequence[bytes]]
    ) -> None:
        self._connection = connection
        self._runs = dict(runs)
        self._metadata = metadata
        #: Runs that were unmatched before, as they are in the table.
        self.known: dict[str, asyncpg.Record] = {}
        self.by_input: dict[str, list[Run]] = defaultdict(list)
        #: Runs that no input is known for, each with the reason.
        self.unmatched: list[tuple[Run, str]] = []

    async def read(self, facts: Sequence[Fact]) -> None:
        """Match every run; ``facts`` are the events of ``batches`` that come with them."""
        brought = attempts.batches_of(facts)
        if not self._runs and not brought:
            return
        for record in await self._connection.fetch(_sql["unmatched"], list(self._runs), list(brought)):
            run = tables.run_of(record)
            self.known[run.run_id] = record
            self._runs[run.run_id] = merge(run, self._runs[run.run_id]) if run.run_id in self._runs else run
        batches = brought | await self._batches({run.batch_id for run in self._runs.values()} - brought.keys())
        others: list[tuple[Run, Batch | None]] = []
        for run in self._runs.values():
            batch = batches.get(run.batch_id or "")
            registered = batch is not None and batch.inputs is not None
            outcome = None if registered else match(run.batch_id, batch, run.binding)
            if outcome is None or isinstance(outcome, Unmatched):
                others.append((run, batch))
            else:
                self.by_input[outcome].append(run)
        await self._follow(others)

    async def _batches(self, batch_ids: set[str | None]) -> dict[str, Batch]:
        """The batches that are in the table; of registered ones the inputs that runs seen now may be of."""
        found: dict[str, Batch] = {}
        registered = []
        for record in await self._connection.fetch(_sql["batches_by_id"], [b for b in batch_ids if b]):
            found[record["batch_id"]] = Batch(record["batch_id"], record["chunk"], record["attempt"])
            if record["registered"]:
                registered.append(record["batch_id"])
        if registered:
            wanted = {f for run in self._runs.values() if run.batch_id in registered for f in self.fingerprints(run)}
            pairs: dict[str, list[tuple[str | None, str]]] = {batch_id: [] for batch_id in registered}
            for record in await self._connection.fetch(_sql["inputs_by_fingerprint"], registered, list(wanted)):
                pairs[record["batch_id"]].append((record["fingerprint"], record["input_id"]))
            for batch_id in registered:
                found[batch_id] = replace(found[batch_id], inputs=by_fingerprint(pairs[batch_id]))
        return found

    async def _follow(self, others: Sequence[tuple[Run, Batch | None]]) -> None:
        """A run that was bound before stays bound, whatever its metadata say now; else it is matched, or unmatched."""
        if not others:
            return
        records = await self._connection.fetch(_sql["homes_by_run"], [run.run_id for run, _ in others])
        homes = {r["run_id"]: Binding(r["input_id"], r["chunk"], r["attempt"], "") for r in records}
        for run, batch in others:
            binding = homes.get(run.run_id)
            if binding is None:
                outcome = match(run.batch_id, batch, run.binding, self.fingerprints(run))
                if isinstance(outcome, Unmatched):
                    self.unmatched.append((run, outcome.reason))
                    continue
                home = cast(Batch, batch)
                binding = Binding(outcome, home.chunk, home.attempt, "")
            self.by_input[binding.input_id].append(tables.rebound(run, binding))

    def fingerprints(self, run: Run) -> list[str]:
        """Those of the metadata the run was seen with, in the order of the log, each once."""
        known = self.known.get(run.run_id)
        seen = [fingerprint(metadata) for metadata in self._metadata.get(run.run_id, ())]
        return list(dict.fromkeys([*(known["fingerprints"] if known else ()), *(f for f in seen if f is not None)]))
