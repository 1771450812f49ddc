"""Find the input of each run in some polls, by the rules in :mod:`everyrun.projection.rules.match`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import asyncpg
import msgspec
from msgspec.structs import replace

from everyrun.log.keys import lineage, partition_of
from everyrun.projection import tables
from everyrun.projection.decode import DecodedPolls
from everyrun.projection.rules import attempts
from everyrun.projection.rules.match import (
    INPUT_UNKNOWN,
    Batch,
    Unmatched,
    by_fingerprint,
    fingerprint,
    match,
    unique_by_attempt,
)
from everyrun.projection.rules.merge import Binding, Run, merge
from everyrun.projection.rules.run_selection import Row
from everyrun.store.sql import beside

_sql = beside(__file__, "apply.sql")
_bindings = msgspec.json.Decoder(list[Binding])


class OutOfPlaceError(Exception):
    """A record may not be in the partition of its chunk, so the transaction must lock the tables exclusively."""


class _Bound(msgspec.Struct, frozen=True):
    """The input and the batch to which an earlier transaction bound a run."""

    binding: Binding
    batch_id: str


class RunMatcher:
    """Matches the runs in some polls, and those earlier, unmatched runs whose batch these polls announce.

    A run may name several inputs. It is bound to the first of them that is in its batch, and then stays bound to it.
    """

    def __init__(self, connection: asyncpg.Connection, decoded: DecodedPolls, partitions: int) -> None:
        self._connection = connection
        self._decoded = decoded
        self._partitions = partitions
        self._runs: dict[str, Run] = dict(decoded.runs)
        #: By run id: the rows in ``unmatched_runs`` of runs that were unmatched before.
        self.known: dict[str, asyncpg.Record] = {}
        self.by_input: dict[str, list[Run]] = defaultdict(list)
        self._unmatched: list[tuple[Run, str]] = []
        #: By input id: the rows in ``results`` of the inputs concerned. An input without a row is left out.
        self.rows: dict[str, Row] = {}

    async def match_runs(self, *, exclusive: bool) -> None:
        """Match every run.

        If ``exclusive`` is False, raises OutOfPlaceError if a record does not lie in the partition of its chunk, or if
        its chunk is unknown. In these cases, two concurrent transactions, which do not see each other's changes, could
        decide about the same run.
        """
        logged_events = self._decoded.attempts
        brought = attempts.batches_of(logged_events)
        if not self._runs and not logged_events and not self._decoded.retries:
            return
        for record in await self._connection.fetch(_sql["unmatched"], list(self._runs), list(brought)):
            run = tables.run_of(record)
            self.known[run.run_id] = record
            self._runs[run.run_id] = merge(run, self._runs[run.run_id]) if run.run_id in self._runs else run
        batches = brought | await self._batches({run.batch_id for run in self._runs.values()} - brought.keys())
        named = {run.run_id: self._named(run, batches.get(run.batch_id or "")) for run in self._runs.values()}
        candidates = {i for found in named.values() if not isinstance(found, Unmatched) for i in found}
        await self._read_rows(
            {
                *candidates,
                *(
                    given.input_id
                    for logged in (*self._decoded.retries, *logged_events)
                    for given in attempts.inputs_with_rows(logged.event)
                ),
            }
        )
        bound = await self._bound(named)
        if not exclusive and not self._in_place(batches, bound):
            raise OutOfPlaceError
        await self._read_rows({b.binding.input_id for b in bound.values()} - self.rows.keys())
        members = await self._members(named, batches)
        for run in self._runs.values():
            self._assign(run, batches.get(run.batch_id or ""), named[run.run_id], bound.get(run.run_id), members)

    def _named(self, run: Run, batch: Batch | None) -> list[str] | Unmatched:
        # A fingerprint is expensive (canonical JSON and a hash), and only runs of registered batches need one.
        registered = batch is not None and batch.inputs_by_fingerprint is not None
        return match(run.batch_id, batch, self.bindings(run), self.fingerprints(run) if registered else ())

    def _assign(
        self,
        run: Run,
        batch: Batch | None,
        named: list[str] | Unmatched,
        bound: _Bound | None,
        members: set[tuple[str, str]],
    ) -> None:
        if bound is not None:
            self.by_input[bound.binding.input_id].append(tables.bound(run, bound.binding, bound.batch_id))
            return
        if isinstance(named, Unmatched):
            self._unmatched.append((run, named.reason))
            return
        assert batch is not None
        for input_id in named:
            if self._is_member(input_id, batch, members):
                binding = Binding(input_id, batch.chunk, batch.attempt, "")
                self.by_input[input_id].append(tables.bound(run, binding, batch.batch_id))
                return
        self._unmatched.append((run, INPUT_UNKNOWN))

    async def _batches(self, batch_ids: set[str | None]) -> dict[str, Batch]:
        """Read the batches from the table. For registered batches, also read the inputs that the runs may belong to."""
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
                found[batch_id] = replace(found[batch_id], inputs_by_fingerprint=by_fingerprint(pairs[batch_id]))
        return found

    async def _read_rows(self, input_ids: Iterable[str]) -> None:
        wanted = list(input_ids)
        if wanted:
            for record in await self._connection.fetch(_sql["rows_by_input"], wanted):
                self.rows[record["input_id"]] = tables.row_of(record)

    async def _bound(self, named: Mapping[str, list[str] | Unmatched]) -> dict[str, _Bound]:
        """Return, by run id, the input and the batch that a run is already bound to.

        Two kinds of runs need no lookup. A run that was unmatched before is not bound. And if a run names an input, and
        is already the current run of this input, it is matched to the same input again.
        """
        wanted = []
        for run_id, found in named.items():
            if run_id in self.known:
                continue
            row = None if isinstance(found, Unmatched) else self.rows.get(found[0])
            if row is None or row.run_id != run_id:
                wanted.append(run_id)
        bound = {}
        if wanted:
            for r in await self._connection.fetch(_sql["attempts_by_run"], wanted):
                bound[r["run_id"]] = _Bound(Binding(r["input_id"], r["chunk"], r["attempt"], ""), r["batch_id"])
        return bound

    async def _members(
        self, named: Mapping[str, list[str] | Unmatched], batches: Mapping[str, Batch]
    ) -> set[tuple[str, str]]:
        """Return pairs (batchId, input id) of inputs that are in the batch, but whose row names another attempt.

        No pair is needed for an input that belongs to the attempt of the batch: its row in ``self.rows`` is enough.
        """
        unclear = set()
        for run_id, found in named.items():
            batch = batches.get(self._runs[run_id].batch_id or "")
            if isinstance(found, Unmatched) or batch is None or batch.members is not None:
                continue
            for input_id in found:
                row = self.rows.get(input_id)
                if row is not None and row.attempt_key != batch.attempt_key:
                    unclear.add((batch.batch_id, input_id))
        if not unclear:
            return set()
        records = await self._connection.fetch(_sql["members"], *tables.columns_of(sorted(unclear)))
        return {(record["batch_id"], record["input_id"]) for record in records}

    def _is_member(self, input_id: str, batch: Batch, members: set[tuple[str, str]]) -> bool:
        if batch.members is not None:
            return input_id in batch.members
        row = self.rows.get(input_id)
        return row is not None and (row.attempt_key == batch.attempt_key or (batch.batch_id, input_id) in members)

    def _in_place(self, batches: Mapping[str, Batch], bound: Mapping[str, _Bound]) -> bool:
        """Return True if each record lies in its chunk's partition, so that no other transaction can touch its rows."""
        for logged in (*self._decoded.retries, *self._decoded.attempts):
            if logged.partition != self._partition(attempts.key_of(logged.event)):
                return False
        return all(
            self._own_partition(self._runs[run_id], batches, bound.get(run_id)) == seen_in
            for run_id, seen_in in self._decoded.partitions.items()
        )

    def _own_partition(self, run: Run, batches: Mapping[str, Batch], bound: _Bound | None) -> set[int]:
        """Return a set with the partition of the run's chunk or batch. It is empty if the partition is unknown."""
        if run.batch_id is not None:
            batch = batches.get(run.batch_id)
            return set() if batch is None else {self._partition(batch.key)}
        # Of a run without a batchId, only the chunk that it names is known. If the run is already bound to an input,
        # that input must belong to the same chunk.
        keys = {lineage(binding.chunk) for binding in self._decoded.bindings[run.run_id]}
        if bound is not None:
            keys.add(lineage(bound.binding.chunk))
        return {self._partition(keys.pop())} if len(keys) == 1 else set()

    def _partition(self, key: str) -> int:
        return partition_of(key.encode("utf-8", "surrogatepass"), self._partitions)

    def unmatched_runs(self) -> list[tables.UnmatchedRun]:
        """Return the runs that match no input so far."""
        unmatched = []
        for run, reason in self._unmatched:
            before = self.known.get(run.run_id)
            seen = [m for m in (self._decoded.first_seen.get(run.run_id), before and before["first_seen"]) if m]
            unmatched.append(tables.UnmatchedRun(run, reason, min(seen), self.fingerprints(run), self.bindings(run)))
        return unmatched

    def bindings(self, run: Run) -> list[Binding]:
        """Return the run's distinct bindings so far. Bindings to the same attempt are in the order of the log."""
        known = self.known.get(run.run_id)
        before = _bindings.decode(known["bindings"]) if known else []
        return unique_by_attempt([*before, *self._decoded.bindings.get(run.run_id, ())])

    def fingerprints(self, run: Run) -> list[str]:
        """Return the distinct fingerprints of the metadata that the run was seen with, in the order of the log."""
        known = self.known.get(run.run_id)
        seen = [fingerprint(metadata) for metadata in self._decoded.metadata.get(run.run_id, ())]
        return list(dict.fromkeys([*(known["fingerprints"] if known else ()), *(f for f in seen if f is not None)]))
