"""``apply``: a whole poll into the tables, in one transaction, by a few set-based statements, whoever feeds it.

The tables after it are a function of the events applied so far, whatever their order or grouping. Offsets move in the
same transaction, so a record is applied exactly once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import asyncpg

from everyrun.failpoints import hit
from everyrun.projection import attempts, offsets, tables, write
from everyrun.projection.content import Content, Poison, Refused, read
from everyrun.projection.decode import Fact, Poll
from everyrun.projection.join import (
    Decision,
    Deltas,
    Home,
    Row,
    count,
    count_one,
    decide,
    decide_one,
    home_of,
    needs_all_runs,
)
from everyrun.projection.match import INPUT_UNKNOWN
from everyrun.projection.matching import Matching
from everyrun.projection.merge import Run
from everyrun.projection.state import State
from everyrun.store.sql import beside

_sql = beside(__file__, "apply.sql")


SetAside = Callable[[Sequence[Poison]], Awaitable[None]]
"""Puts records into the quarantine; returns when they are there."""


class Applied(NamedTuple):
    """What applying touched, for publishing. ``states`` are the rows of inputs as this application left them."""

    states: dict[str, State]
    inputs: set[str]
    runs: set[str]
    attempts: set[Home]
    submissions: set[str]


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
    be tried again; asyncpg's DataError, IntegrityConstraintViolationError or ProgramLimitExceededError, OverflowError
    or ValueError where a record cannot be stored. In each case nothing was changed.
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
        decided, crowded = await self._decide(bound)
        states = self.fresh | self.moved | {d.row.input_id: State(d.row, decision=d) for d in decided}
        await write.results(self.connection, states, self.fresh.keys(), self.versions)
        await write.duplicates(self.connection, decided, crowded)
        await write.unmatched(self.connection, self.matching, content)
        await write.rest(self.connection, content)
        await write.batches(self.connection, content.attempts, self.deltas)
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
        crowded = {i for i, seen in bound.items() if needs_all_runs(self.rows[i], seen, i in duplicates)}
        standing: dict[str, Run] = {}
        if crowded:
            for record in await self.connection.fetch(_sql["standing_runs"], list(crowded)):
                standing[record["input_id"]] = tables.run_of(record)
        decisions = []
        for input_id, seen in bound.items():
            row = self.rows[input_id]
            if input_id not in crowded:
                only = decide_one(row, seen[0])
                if only is None:
                    self.deltas.touch(row.home)
                    continue
                count_one(only, self.deltas)
                decisions.append(only)
                continue
            losing = {run.run_id: home_of(run, row) for run in duplicates[input_id]}
            before = losing | ({row.run_id: row.home} if row.run_id else {})
            known = [*duplicates[input_id], *([standing[input_id]] if input_id in standing else [])]
            decision = decide(row, known, seen)
            count(decision, before, losing, self.deltas)
            decisions.append(decision)
        return decisions, crowded


def _inputs(fact: Fact) -> list[str]:
    """The inputs that an event brings whole."""
    return [given.input_id for given in getattr(fact.event, "inputs", ())]
