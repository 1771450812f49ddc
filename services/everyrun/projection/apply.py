"""Apply polls to the result tables: one transaction and a few set-based statements, whoever feeds it.

The tables are a function of the log: of the order within each partition, and of nothing else. The order of partitions,
the grouping into polls and the number of workers change nothing. Offsets advance in the same transaction, so each
record is applied exactly once.

Everything about one chunk lies in one partition (:mod:`everyrun.log.keys`), and one transaction at a time applies a
partition. So transactions normally share the tables. A transaction locks the tables exclusively if it holds a record
that lies elsewhere than the chunk it belongs to: a run whose metadata was changed at Extend, or a foreign run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import asyncpg

from everyrun.failpoints import hit
from everyrun.log.reading import Partition, Poll
from everyrun.log.topics import LogIdentity
from everyrun.projection import offsets, tables
from everyrun.projection.decode import DecodedPolls, Poison, Unstorable, decode_polls
from everyrun.projection.rules import attempts
from everyrun.projection.rules.merge import AttemptKey, Run
from everyrun.projection.rules.run_selection import (
    CounterDeltas,
    Row,
    Selection,
    attempt_of,
    count,
    count_only,
    is_contested,
    select,
    select_only,
)
from everyrun.projection.run_matcher import OutOfPlaceError, RunMatcher
from everyrun.projection.tables import InputState
from everyrun.store.sql import beside

_sql = beside(__file__, "apply.sql")


SetAside = Callable[[Sequence[Poison]], Awaitable[None]]
"""Writes records to the quarantine, and returns once they are acknowledged."""


class Applied(NamedTuple):
    """Everything that a transaction touched, for publishing. ``states`` are the rows of inputs as it left them."""

    states: dict[str, InputState]
    inputs: set[str]
    runs: set[str]
    attempts: set[AttemptKey]
    submissions: set[str]


def touched(decoded: DecodedPolls) -> Applied:
    """Return what records that were applied earlier are about, so that its current state is published again."""
    return Applied(
        states={},
        inputs={given.input_id for logged in decoded.attempts for given in attempts.inputs_with_rows(logged.event)},
        runs=set(decoded.runs),
        attempts={(logged.event.chunk, logged.event.attempt) for logged in decoded.attempts},  # type: ignore[attr-defined]
        submissions={logged.event.submission_id for logged in decoded.submissions},  # type: ignore[attr-defined]
    )


async def apply(
    connection: asyncpg.Connection,
    polls: Sequence[Poll],
    identity: LogIdentity,
    set_aside: SetAside,
    unstorable: Unstorable | None = None,
    needed: Mapping[Partition, int] | None = None,
) -> Applied:
    """Apply polls, each of another partition, in one transaction. Records that were applied before are skipped.

    ``needed`` are offsets up to which partitions must be applied before, these or others.

    Records that are invalid or ``unstorable`` go to ``set_aside`` before the commit.

    Each of these errors means that nothing was changed:

    - GapError: less is applied than is needed, or than the poll begins with.
    - ForeignLogError: the tables come from another log.
    - ConflictError, and asyncpg's serialization, deadlock and unique errors: retry the transaction.
    - asyncpg's DataError, IntegrityConstraintViolationError and ProgramLimitExceededError, OverflowError and
      ValueError: a record cannot be stored.
    """
    await connection.execute(_sql["create_staging"])
    decoder = _Decoder(unstorable)
    try:
        return await _apply(connection, polls, identity, set_aside, decoder, needed, exclusive=False)
    except OutOfPlaceError:
        return await _apply(connection, polls, identity, set_aside, decoder, needed, exclusive=True)


class _Decoder:
    """Decodes polls, and remembers the result for a second try with the same polls."""

    def __init__(self, unstorable: Unstorable | None) -> None:
        self._unstorable = unstorable
        self._firsts: list[int] = []
        self._decoded: DecodedPolls | None = None

    def decode(self, polls: Sequence[Poll]) -> DecodedPolls:
        firsts = [poll.first for poll in polls]
        if self._decoded is None or firsts != self._firsts:
            self._firsts, self._decoded = firsts, decode_polls(polls, self._unstorable)
        return self._decoded


async def _apply(
    connection: asyncpg.Connection,
    polls: Sequence[Poll],
    identity: LogIdentity,
    set_aside: SetAside,
    decoder: _Decoder,
    needed: Mapping[Partition, int] | None,
    *,
    exclusive: bool,
) -> Applied:
    """Apply in one transaction. Raises OutOfPlaceError, and changes nothing, if it must be ``exclusive`` but is not."""
    async with connection.transaction():
        next_offsets = await offsets.lock(connection, [(poll.topic, poll.partition) for poll in polls], identity)
        if needed:
            missing = offsets.missing(await offsets.applied_offsets(connection, identity), needed)
            if missing:
                raise offsets.GapError({partition: start for partition, (start, _) in missing.items()})
        parts = [offsets.split_at(poll, next_offsets[poll.topic, poll.partition]) for poll in polls]
        new = [part for _, part in parts if part is not None]
        # Also for a poll that is only partly applied: whoever applied that part may have died before publishing it.
        earlier = touched(decode_polls([part for part, _ in parts if part is not None]))
        if not new:
            return earlier
        decoded = decoder.decode(new)
        await connection.execute(_sql["lock_tables" if exclusive else "share_tables"])
        matcher = RunMatcher(connection, decoded, identity.partitions)
        await matcher.match_runs(exclusive=exclusive)
        if decoded.poison:
            await set_aside(decoded.poison)
        applied = await _Transaction(connection, decoded, matcher).run()
        hit("apply.before_offset")
        await offsets.advance(connection, new)
        hit("apply.before_commit")
    hit("apply.after_commit")
    return Applied(
        applied.states,
        applied.inputs | earlier.inputs,
        applied.runs | earlier.runs,
        applied.attempts | earlier.attempts,
        applied.submissions | earlier.submissions,
    )


class _Transaction:
    """The steps of one transaction. Locks are acquired in one order: offsets, tables, rows."""

    def __init__(self, connection: asyncpg.Connection, decoded: DecodedPolls, matcher: RunMatcher) -> None:
        self.connection = connection
        self.decoded = decoded
        self.matcher = matcher
        self.deltas = CounterDeltas()
        self.rows: dict[str, Row] = dict(matcher.rows)
        #: Rows to insert.
        self.inserted: dict[str, InputState] = {}
        #: Existing rows that another attempt takes over.
        self.moved: dict[str, InputState] = {}
        #: The versions that existing rows had.
        self.versions: dict[str, str] = {input_id: row.version for input_id, row in matcher.rows.items()}
        self.inputs: set[str] = set()

    async def run(self) -> Applied:
        """Write everything. The caller commits."""
        decoded = self.decoded
        self._add_rows_of_attempts()
        selections, contested = await self._select_runs(self.matcher.by_input)
        selected = {s.row.input_id: InputState(s.row, selection=s) for s in selections}
        states = self.inserted | self.moved | selected
        await tables.write_results(self.connection, states, self.inserted.keys(), self.versions)
        await tables.write_duplicates(self.connection, selections, contested)
        await tables.write_unmatched(self.connection, self.matcher.known.keys(), self.matcher.unmatched_runs())
        await tables.write_submissions(self.connection, decoded.submissions)
        await tables.write_deliveries(self.connection, decoded.deliveries)
        await tables.write_decisions(self.connection, decoded.decisions)
        await tables.write_quarantine(self.connection, decoded.quarantine)
        await tables.write_attempts(self.connection, decoded.attempts, self.deltas)
        submissions = {logged.event.submission_id for logged in decoded.submissions}  # type: ignore[attr-defined]
        return Applied(states, self.inputs, set(), set(self.deltas.attempts()), submissions)

    def _add_rows_of_attempts(self) -> None:
        """Add the rows that attempts bring. If two attempts bring the same input, the greater version wins."""
        for logged in self.decoded.attempts:
            for row, reason, message in attempts.rows_of(logged):
                self.inputs.add(row.input_id)
                known = self.rows.get(row.input_id)
                if known is None:
                    self.deltas.move(None, (row.attempt_key, row.status))
                elif row.version > known.version:
                    self.deltas.move((known.attempt_key, known.status), (row.attempt_key, row.status))
                else:
                    self.deltas.touch(row.attempt_key)
                    continue
                if known is None or row.input_id in self.inserted:
                    self.inserted[row.input_id] = InputState(row, reason, message)
                else:
                    self.moved[row.input_id] = InputState(row, reason, message)
                self.rows[row.input_id] = row

    async def _select_runs(self, matched: dict[str, list[Run]]) -> tuple[list[Selection], set[str]]:
        """Return the selections that change a row, and the contested inputs, whose duplicates must be rewritten."""
        self.inputs.update(matched)
        duplicates: dict[str, list[Run]] = defaultdict(list)
        if matched:
            for record in await self.connection.fetch(_sql["duplicates_of"], list(matched)):
                duplicates[record["input_id"]].append(tables.run_of(record))
        contested = {i for i, seen in matched.items() if is_contested(self.rows[i], seen, i in duplicates)}
        current: dict[str, Run] = {}
        if contested:
            for record in await self.connection.fetch(_sql["current_runs"], list(contested)):
                current[record["input_id"]] = tables.run_of(record)
        selections = []
        for input_id, seen in matched.items():
            row = self.rows[input_id]
            if input_id not in contested:
                only = select_only(row, seen[0])
                if only is None:
                    self.deltas.touch(row.attempt_key)
                    continue
                count_only(only, self.deltas)
                selections.append(only)
                continue
            duplicates_before = {run.run_id: attempt_of(run, row) for run in duplicates[input_id]}
            before = duplicates_before | ({row.run_id: row.attempt_key} if row.run_id else {})
            known = [*duplicates[input_id], *([current[input_id]] if input_id in current else [])]
            selection = select(row, known, seen)
            count(selection, before, duplicates_before, self.deltas)
            selections.append(selection)
        return selections, contested
