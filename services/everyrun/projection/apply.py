"""``apply``: a whole poll into the tables, in one transaction, by a few set-based statements, whoever feeds it.

The tables are a function of the log: of the order within each partition, and of nothing else (no order of partitions,
no grouping, no number of workers). Offsets move in the same transaction, so a record is applied exactly once.

All that concerns a chunk lies in one partition (:mod:`everyrun.log.keys`), and one transaction at a time applies a
partition. So transactions share the tables. One that has something that lies elsewhere than what it belongs to (a run
whose metadata were changed upstream, somebody else's run) has them alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import asyncpg

from everyrun.failpoints import hit
from everyrun.log.topics import LogIdentity
from everyrun.projection import offsets, tables, write
from everyrun.projection.decode import Poll
from everyrun.projection.decoded_polls import Content, Poison, Refused, read
from everyrun.projection.rules import attempts
from everyrun.projection.rules.merge import Run
from everyrun.projection.rules.run_selection import (
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
from everyrun.projection.run_matcher import Matching, OutOfPlaceError
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
        inputs={given.input_id for fact in content.attempts for given in attempts.inputs_with_rows(fact.event)},
        runs=set(content.runs),
        attempts={(fact.event.chunk, fact.event.attempt) for fact in content.attempts},  # type: ignore[attr-defined]
        submissions={fact.event.submission_id for fact in content.submissions},  # type: ignore[attr-defined]
    )


async def apply(
    connection: asyncpg.Connection,
    polls: Sequence[Poll],
    identity: LogIdentity,
    set_aside: SetAside,
    refused: Refused | None = None,
    needed: Mapping[offsets.Position, int] | None = None,
) -> Applied:
    """Apply polls, each of another partition, in one transaction; what was applied before is left out.

    ``needed`` is how far the tables must be applied before, in whichever partitions.

    Records that are not understood, and those in ``refused``, are given to ``set_aside`` before the commit.

    Raises GapError where less is applied than is needed, or than a poll begins with; ForeignLogError for tables of
    another log; ConflictError or asyncpg's serialization, deadlock and unique errors where the transaction is to
    be tried again; asyncpg's DataError, IntegrityConstraintViolationError or ProgramLimitExceededError, OverflowError
    or ValueError where a record cannot be stored. In each case nothing was changed.
    """
    await connection.execute(_sql["create_staging"])
    reader = _Reader(refused)
    try:
        return await _apply(connection, polls, identity, set_aside, reader, needed, alone=False)
    except OutOfPlaceError:
        return await _apply(connection, polls, identity, set_aside, reader, needed, alone=True)


class _Reader:
    """Decodes polls; the same ones a second time without the work."""

    def __init__(self, refused: Refused | None) -> None:
        self._refused = refused
        self._firsts: list[int] = []
        self._content: Content | None = None

    def read(self, polls: Sequence[Poll]) -> Content:
        firsts = [poll.first for poll in polls]
        if self._content is None or firsts != self._firsts:
            self._firsts, self._content = firsts, read(polls, self._refused)
        return self._content


async def _apply(
    connection: asyncpg.Connection,
    polls: Sequence[Poll],
    identity: LogIdentity,
    set_aside: SetAside,
    reader: _Reader,
    needed: Mapping[offsets.Position, int] | None,
    *,
    alone: bool,
) -> Applied:
    """Apply in one transaction. Raises OutOfPlaceError, after which nothing was changed, if it must be ``alone``."""
    async with connection.transaction():
        places = [(poll.topic, poll.partition) for poll in polls]
        nexts = await offsets.lock(connection, places, identity)
        if needed:
            missing = offsets.behind(await offsets.positions(connection, identity), needed)
            if missing:
                raise offsets.GapError({place: start for place, (start, _) in missing.items()})
        parts = [offsets.divided(poll, nexts[poll.topic, poll.partition]) for poll in polls]
        new = [part for _, part in parts if part is not None]
        # Also of a poll that goes on past what is applied: whoever applied it may have died before publishing it.
        again = touched(read([part for part, _ in parts if part is not None]))
        if not new:
            return again
        content = reader.read(new)
        await connection.execute(_sql["have_tables_alone" if alone else "share_tables"])
        matching = Matching(connection, content, identity.partitions)
        await matching.read(alone=alone)
        if content.poison:
            await set_aside(content.poison)
        applied = await _Transaction(connection, content, matching).run()
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
    """The steps of one application. Locks are taken in one order: offsets, the tables, rows."""

    def __init__(self, connection: asyncpg.Connection, content: Content, matching: Matching) -> None:
        self.connection = connection
        self.content = content
        self.matching = matching
        self.deltas = Deltas()
        self.rows: dict[str, Row] = dict(matching.rows)
        #: Rows that are not there yet.
        self.fresh: dict[str, State] = {}
        #: Rows that are there already and get another attempt.
        self.moved: dict[str, State] = {}
        #: The versions that rows had.
        self.versions: dict[str, str] = {input_id: row.version for input_id, row in matching.rows.items()}
        self.inputs: set[str] = set()

    async def run(self) -> Applied:
        """All steps; the caller commits."""
        content = self.content
        bound = self.matching.by_input
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

    def _take_inputs(self) -> None:
        """Rows that events bring; of two attempts at an input without a run the greater version stands."""
        for fact in self.content.attempts:
            for row, reason, message in attempts.rows_of(fact):
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
