"""``apply``: a whole poll into the tables, in one transaction, by a few set-based statements, whoever feeds it.

The tables after it are a function of the events applied so far, whatever their order or grouping. Offsets move in the
same transaction, so a record is applied exactly once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg

from everyrun.extend import reserved
from everyrun.failpoints import hit
from everyrun.log import events
from everyrun.projection import attempts, decisions, offsets, tables
from everyrun.projection.decode import Fact, LogRecord, NotUnderstoodError, Poll, fact_of, run_of
from everyrun.projection.join import Decision, Deltas, Home, Row, count, decide, decide_one, home_of, needs_all_runs
from everyrun.projection.join import version_of as version_of_run
from everyrun.projection.match import INPUT_UNKNOWN
from everyrun.projection.matching import Matching
from everyrun.projection.merge import Run, merge
from everyrun.projection.state import State
from everyrun.store.sql import beside

_sql = beside(__file__, "apply.sql")


class ConflictError(Exception):
    """Another transaction changed a row between our reading and our writing it: begin again."""


class Poison(NamedTuple):
    """A record that is not an event of its topic, or that cannot be stored."""

    topic: str
    record: LogRecord
    reason: str


SetAside = Callable[[Sequence[Poison]], Awaitable[None]]
"""Puts records into the quarantine; returns when they are there."""

Refused = Mapping[tuple[str, int, int], str]
"""Records known not to be storable, by (topic, partition, offset), each with the reason."""


class Applied(NamedTuple):
    """What applying touched, for publishing. ``states`` are the rows of inputs as this application left them."""

    states: dict[str, State]
    inputs: set[str]
    runs: set[str]
    attempts: set[Home]
    submissions: set[str]


class Content(NamedTuple):
    """The decoded records of some polls."""

    runs: dict[str, Run]
    first_seen: dict[str, datetime]
    #: The different metadata each run was seen with, in the order of the log.
    metadata: dict[str, list[bytes]]
    attempts: list[Fact]
    submissions: list[Fact]
    deliveries: list[Fact]
    quarantined: list[Fact]
    decisions: list[Fact]
    poison: list[Poison]


def read(polls: Sequence[Poll], refused: Refused | None = None) -> Content:
    """Decode polls; several observations of one run are merged. What is not understood is in ``poison``."""
    content = Content({}, {}, {}, [], [], [], [], [], [])
    for poll in polls:
        for record in poll.records:
            try:
                if refused and (poll.topic, poll.partition, record.offset) in refused:
                    raise NotUnderstoodError(refused[poll.topic, poll.partition, record.offset])
                if poll.topic == "runs":
                    _take_run(content, run_of(record))
                else:
                    _take_fact(content, fact_of(poll.topic, record))
            except NotUnderstoodError as error:
                content.poison.append(Poison(poll.topic, record, str(error)))
    return content


def _take_run(content: Content, run: Run) -> None:
    known = content.runs.get(run.run_id)
    content.runs[run.run_id] = run if known is None else merge(known, run)
    metadata = content.metadata.setdefault(run.run_id, [])
    if run.metadata not in metadata:
        metadata.append(run.metadata)
    seen = content.first_seen.get(run.run_id)
    content.first_seen[run.run_id] = run.observed_at if seen is None else min(seen, run.observed_at)


def _take_fact(content: Content, fact: Fact) -> None:
    if isinstance(fact.event, events.SubmissionAccepted):
        content.submissions.append(fact)
    elif isinstance(fact.event, events.DeliveryDeferred):
        content.deliveries.append(fact)
    elif isinstance(fact.event, events.QuarantineEvent):
        content.quarantined.append(fact)
        if isinstance(fact.event, decisions.OF_THE_QUARANTINE):
            content.decisions.append(fact)
    elif isinstance(fact.event, decisions.OF_NO_ATTEMPT):
        content.decisions.append(fact)
    else:
        if isinstance(fact.event, decisions.OF_AN_ATTEMPT):
            content.decisions.append(fact)
        content.attempts.append(fact)
        if isinstance(fact.event, events.BatchRegistered):
            content.submissions.append(fact)


def touched(content: Content) -> Applied:
    """What records that were applied before are about, so that its present state can be published again."""
    return Applied(
        states={},
        inputs={given.input_id for fact in content.attempts for given in getattr(fact.event, "inputs", ())},
        runs=set(content.runs),
        attempts={(fact.event.chunk, fact.event.attempt) for fact in content.attempts},  # type: ignore[attr-defined]
        submissions={fact.event.submission_id for fact in content.submissions},  # type: ignore[attr-defined]
    )


async def apply(
    connection: asyncpg.Connection,
    polls: Sequence[Poll],
    cluster_id: str,
    set_aside: SetAside,
    refused: Refused | None = None,
    needed: Mapping[offsets.Position, int] | None = None,
) -> Applied:
    """Apply polls, each of another partition, in one transaction; what was applied before is left out.

    ``needed`` is how far the tables must be applied before, in whichever partitions.

    Records that are not understood, and those in ``refused``, are given to ``set_aside`` before the commit.

    Raises GapError where less is applied than is needed, or than a poll begins with; ForeignLogError for tables of
    another cluster; ConflictError or asyncpg's serialization, deadlock and unique errors where the transaction is to
    be tried again; asyncpg.DataError or IntegrityConstraintViolationError where a record cannot be stored. In each
    case nothing was changed.
    """
    await connection.execute(_sql["create_staging"])
    async with connection.transaction():
        places = [(poll.topic, poll.partition) for poll in polls]
        nexts = await offsets.lock(connection, places, cluster_id)
        if needed:
            missing = offsets.behind(await offsets.positions(connection, cluster_id), needed)
            if missing:
                raise offsets.GapError({place: start for place, (start, _) in missing.items()})
        parts = [offsets.divided(poll, nexts[poll.topic, poll.partition]) for poll in polls]
        new = [part for _, part in parts if part is not None]
        # Also of a poll that goes on past what is applied: whoever applied it may have died before publishing it.
        again = touched(read([part for part, _ in parts if part is not None]))
        if not new:
            return again
        content = read(new, refused)
        if content.poison:
            await set_aside(content.poison)
        applied = await _Transaction(connection, content).run()
        hit("apply.before_offset")
        await offsets.advance(connection, new)
        hit("apply.before_commit")
    hit("apply.after_commit")
    return Applied(
        applied.states,
        applied.inputs | again.inputs,
        applied.runs | again.runs,
        applied.attempts | again.attempts,
        applied.submissions | again.submissions,
    )


class _Transaction:
    """The steps of one application. Locks are taken in one order: offsets, results, batches, each sorted."""

    def __init__(self, connection: asyncpg.Connection, content: Content) -> None:
        self.connection = connection
        self.content = content
        self.matching = Matching(connection, content.runs, content.metadata)
        self.deltas = Deltas()
        self.rows: dict[str, Row] = {}
        #: Rows that are not there yet.
        self.fresh: dict[str, State] = {}
        #: Rows that are there already and get another attempt.
        self.moved: dict[str, State] = {}
        #: The versions that rows had.
        self.versions: dict[str, str] = {}
        self.inputs: set[str] = set()

    async def run(self) -> Applied:
        """All steps; the caller commits."""
        content = self.content
        await self.matching.read(content.attempts)
        bound = self.matching.by_input
        await self._read_rows(bound)
        self._take_inputs()
        decisions, duplicates = await self._decide(bound)
        states = await self._write_results(decisions)
        await self._write_duplicates(decisions, duplicates)
        await self._write_unmatched()
        await self._write_rest()
        await self._write_attempts()
        homes = set(self.deltas.homes())
        submissions = {fact.event.submission_id for fact in content.submissions}  # type: ignore[attr-defined]
        return Applied(states, self.inputs, set(), homes, submissions)

    async def _read_rows(self, bound: dict[str, list[Run]]) -> None:
        brought = [given for fact in self.content.attempts for given in _inputs(fact)]
        wanted = list({*bound, *brought})
        if wanted:
            for record in await self.connection.fetch(_sql["rows_by_input"], wanted):
                self.rows[record["input_id"]] = tables.row_of(record)
                self.versions[record["input_id"]] = record["version"]

    def _take_inputs(self) -> None:
        """Rows that events bring; of two attempts at an input without a run the greater version stands."""
        for fact in self.content.attempts:
            for row, reason, message in attempts.rows_of(fact) if _inputs(fact) else ():
                self.inputs.add(row.input_id)
                known = self.rows.get(row.input_id)
                if known is None:
                    self.deltas.move(None, (row.home, row.status))
                elif row.version > known.version:
                    self.deltas.move((known.home, known.status), (row.home, row.status))
                else:
                    self.deltas.touch(row.home)
                    continue
                if known is None or row.input_id in self.fresh:
                    self.fresh[row.input_id] = State(row, reason, message)
                else:
                    self.moved[row.input_id] = State(row, reason, message)
                self.rows[row.input_id] = row

    async def _decide(self, bound: dict[str, list[Run]]) -> tuple[list[Decision], set[str]]:
        """Who stands for each input; also the inputs whose duplicates are to be written anew."""
        for input_id in [input_id for input_id in bound if input_id not in self.rows]:
            self.matching.unmatched.extend((run, INPUT_UNKNOWN) for run in bound.pop(input_id))
        self.inputs.update(bound)
        duplicates: dict[str, list[Run]] = defaultdict(list)
        if bound:
            for record in await self.connection.fetch(_sql["duplicates_of"], list(bound)):
                duplicates[record["input_id"]].append(tables.run_of(record))
        crowded = [i for i, seen in bound.items() if needs_all_runs(self.rows[i], seen, i in duplicates)]
        standing: dict[str, Run] = {}
        if crowded:
            for record in await self.connection.fetch(_sql["standing_runs"], crowded):
                standing[record["input_id"]] = tables.run_of(record)
        decisions = []
        for input_id, seen in bound.items():
            row = self.rows[input_id]
            if input_id not in crowded:
                decision = decide_one(row, seen[0])
                before = {row.run_id: row.home} if row.run_id else {}
                losing: dict[str, Home] = {}
            else:
                losing = {run.run_id: home_of(run, row) for run in duplicates[input_id]}
                before = losing | ({row.run_id: row.home} if row.run_id else {})
                known = [*duplicates[input_id], *([standing[input_id]] if input_id in standing else [])]
                decision = decide(row, known, seen)
            if decision is None:
                self.deltas.touch(row.home)
                continue
            count(decision, before, losing, self.deltas)
            decisions.append(decision)
        return decisions, set(crowded)

    async def _write_results(self, decisions: list[Decision]) -> dict[str, State]:
        """Write the rows that changed; each as it is now."""
        decided = {decision.row.input_id: State(decision.row, decision=decision) for decision in decisions}
        states = self.fresh | self.moved | decided
        if self.fresh:
            values = (states[input_id].values() for input_id in sorted(self.fresh))
            await tables.copy(self.connection, "results", tables.RESULT_COLUMNS, values)
        staged = [states[i].staged(self.versions[i]) for i in sorted(states.keys() - self.fresh.keys())]
        if staged:
            await tables.copy(self.connection, "staged_results", tables.STAGED_COLUMNS, staged)
            done = await self.connection.execute(_sql["update_results"])
            if done != f"UPDATE {len(staged)}":
                raise ConflictError(f"{done} of {len(staged)} rows")
        return states

    async def _write_duplicates(self, decisions: list[Decision], crowded: set[str]) -> None:
        if not crowded:
            return
        await self.connection.execute(_sql["delete_duplicates"], sorted(crowded))
        values = [
            tables.duplicate(run, decision.row, version_of_run(run))
            for decision in decisions
            if decision.row.input_id in crowded
            for run in decision.losers
        ]
        if values:
            await tables.copy(self.connection, "duplicate_runs", tables.DUPLICATE_COLUMNS, values)

    async def _write_unmatched(self) -> None:
        known = self.matching.known
        if known:
            await self.connection.execute(_sql["delete_unmatched"], list(known))
        values = []
        for run, reason in self.matching.unmatched:
            before = known.get(run.run_id)
            seen = [m for m in (self.content.first_seen.get(run.run_id), before and before["first_seen"]) if m]
            values.append(tables.unmatched(run, reason, min(seen), self.matching.fingerprints(run)))
        if values:
            await tables.copy(self.connection, "unmatched_runs", tables.UNMATCHED_COLUMNS, values)

    async def _write_rest(self) -> None:
        if self.content.submissions:
            facts: list[Any] = [fact.event for fact in self.content.submissions]
            await self.connection.execute(_sql["insert_submissions"], *tables.submission_arrays(facts))
        if self.content.deliveries:
            rows = []
            for fact in self.content.deliveries:
                event: Any = fact.event
                key = reserved.read(event.metadata)
                rows.append(
                    (
                        event.run_id,
                        event.event_type,
                        key and key.chunk,
                        key and key.attempt,
                        key and key.input,
                        fact.time,
                    )
                )
            await self.connection.execute(
                _sql["insert_deliveries"], *(list(column) for column in zip(*rows, strict=True))
            )
        for fact in self.content.decisions:
            await self.connection.execute(_sql["insert_decision"], *decisions.values(fact))
        for fact in self.content.quarantined:
            statement, values = tables.quarantine_change(fact)
            await self.connection.execute(_sql[statement], *values)

    async def _write_attempts(self) -> None:
        upserts = [attempts.upsert_of(fact) for fact in self.content.attempts]
        for upsert in sorted(upserts, key=lambda upsert: (upsert.chunk, upsert.attempt)):
            self.deltas.touch((upsert.chunk, upsert.attempt))
        if upserts:
            ordered = sorted(upserts, key=lambda upsert: (upsert.chunk, upsert.attempt))
            await self.connection.executemany(_sql["upsert_attempt"], ordered)
        homes = self.deltas.homes()
        if not homes:
            return
        columns = [chunk for chunk, _ in homes], [attempt for _, attempt in homes]
        changed = []
        for record in await self.connection.fetch(_sql["lock_attempts"], *columns):
            home = (record["chunk"], record["attempt"])
            counts = attempts.moved(tables.counts_of(record["counts"]), self.deltas.counts[home])
            runs = record["runs_observed"] + self.deltas.runs.get(home, 0)
            changed.append((home, record, counts, runs, attempts.state_of(dict(record), counts, runs)))
        ended = [home for home, *_, state in changed if state in ("SETTLED", "REFUSED")]
        last = {}
        if ended:
            arrays = [chunk for chunk, _ in ended], [attempt for _, attempt in ended]
            for record in await self.connection.fetch(_sql["last_settled"], *arrays):
                last[record["chunk"], record["attempt"]] = record["settled_at"]
        values = [
            (
                *home,
                tables.json_of(counts),
                runs,
                record["duplicates"] + self.deltas.duplicates.get(home, 0),
                state,
                last.get(home),
            )
            for home, record, counts, runs, state in changed
        ]
        if values:
            await self.connection.execute(
                _sql["update_attempts"], *(list(column) for column in zip(*values, strict=True))
            )


def _inputs(fact: Fact) -> list[str]:
    """The inputs that an event brings whole."""
    return [given.input_id for given in getattr(fact.event, "inputs", ())]
