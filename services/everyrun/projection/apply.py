"""Apply polls to the result tables, in one transaction with a few set-based statements.

The content of the tables depends only on the order of the records within each partition of the log. It does not depend
on the order in which partitions are read, on how records are grouped into polls, or on the number of workers. The
transaction also advances the offsets in ``applied_offsets``, so each record is applied exactly once.

All records about a chunk are in partitions with the same number (:mod:`everyrun.log.keys`), and only one transaction at
a time applies these partitions. So concurrent transactions normally touch different chunks, and each needs only a
shared lock on the tables. A transaction takes an exclusive lock in two cases:

- A record is not in the partition of its chunk, because somebody changed the run's metadata at Extend.
- The chunk of a record is not known, because the run is a foreign run.
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
    OtherRun,
    Row,
    Selection,
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
"""A function that writes poison records to the quarantine, and returns once Kafka has acknowledged them."""


class Applied(NamedTuple):
    """The ids of everything that a transaction touched, so that its current state can be published.

    ``states`` holds, by input id, the state of each input whose row the transaction wrote.
    """

    states: dict[str, InputState]
    inputs: set[str]
    runs: set[str]
    attempts: set[AttemptKey]
    submissions: set[str]


def touched(decoded: DecodedPolls) -> Applied:
    """Return the ids of everything that these records are about.

    Used for records that an earlier transaction applied, because its results may not be published yet.
    """
    return Applied(
        states={},
        inputs={
            given.input_id
            for logged in (*decoded.retries, *decoded.attempts)
            for given in attempts.inputs_with_rows(logged.event)
        },
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
    """Apply polls, at most one per partition, in one transaction. Skip records that were applied before.

    ``needed`` holds the offset up to which each partition must already be applied. It may contain partitions that have
    no poll here.

    Before the commit, ``set_aside`` is called with the records that are invalid or ``unstorable``.

    After each of these errors, the tables are unchanged:

    - GapError: a partition is not yet applied up to its ``needed`` offset, or up to the first record of its poll.
    - ForeignLogError: the tables were made from another log.
    - ConflictError, and asyncpg's errors for serialization failures, deadlocks and unique violations: retry the
      transaction.
    - asyncpg's DataError, IntegrityConstraintViolationError and ProgramLimitExceededError, and Python's OverflowError
      and ValueError: one of the records cannot be stored.
    """
    await connection.execute(_sql["create_staging"])
    decoder = _Decoder(unstorable)
    try:
        return await _apply(connection, polls, identity, set_aside, decoder, needed, exclusive=False)
    except OutOfPlaceError:
        return await _apply(connection, polls, identity, set_aside, decoder, needed, exclusive=True)


class _Decoder:
    """Decodes polls. Keeps the result, because the same polls may be applied again with the exclusive lock."""

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
    """Apply the polls in one transaction, with an exclusive lock on the tables or with a shared one.

    If ``exclusive`` is False but an exclusive lock is needed, raise OutOfPlaceError and change nothing.
    """
    async with connection.transaction():
        next_offsets = await offsets.lock(connection, [(poll.topic, poll.partition) for poll in polls], identity)
        if needed:
            missing = offsets.missing(await offsets.applied_offsets(connection, identity), needed)
            if missing:
                raise offsets.GapError({partition: start for partition, (start, _) in missing.items()})
        parts = [offsets.split_at(poll, next_offsets[poll.topic, poll.partition]) for poll in polls]
        new = [part for _, part in parts if part is not None]
        # If earlier transactions applied some of these records, publish their results again. The process that applied
        # them may have died before it published them.
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
    """The steps of one transaction.

    All transactions acquire their locks in the same order (offsets, tables, rows), to avoid deadlocks.
    """

    def __init__(self, connection: asyncpg.Connection, decoded: DecodedPolls, matcher: RunMatcher) -> None:
        self.connection = connection
        self.decoded = decoded
        self.matcher = matcher
        self.deltas = CounterDeltas()
        self.rows: dict[str, Row] = dict(matcher.rows)
        #: By input id: rows to insert.
        self.inserted: dict[str, InputState] = {}
        #: By input id: existing rows whose input now belongs to another attempt.
        self.moved: dict[str, InputState] = {}
        #: The version that each existing row had when this transaction read the row.
        self.versions: dict[str, str] = {input_id: row.version for input_id, row in matcher.rows.items()}
        self.inputs: set[str] = set()
        #: Inputs that had a run, and whose row now belongs to a newer try. Their runs become superseded.
        self.superseded: set[str] = set()

    async def run(self) -> Applied:
        """Write all changes, and return what was touched. The caller commits."""
        decoded = self.decoded
        self._add_rows_of_attempts()
        selections, contested = await self._select_runs(self.matcher.by_input)
        selected = {s.row.input_id: InputState(s.row, selection=s) for s in selections if s.current is not None}
        states = self.inserted | self.moved | selected
        await tables.write_results(self.connection, states, self.inserted.keys(), self.versions)
        await tables.write_other_runs(self.connection, selections, contested)
        await tables.write_unmatched(self.connection, self.matcher.known.keys(), self.matcher.unmatched_runs())
        await tables.write_submissions(self.connection, decoded.submissions)
        await tables.write_deliveries(self.connection, decoded.deliveries)
        await tables.write_decisions(self.connection, decoded.decisions)
        await tables.write_quarantine(self.connection, decoded.quarantine)
        await tables.write_attempts(self.connection, decoded.attempts, self.deltas)
        submissions = {logged.event.submission_id for logged in decoded.submissions}  # type: ignore[attr-defined]
        return Applied(states, self.inputs, set(), set(self.deltas.attempts()), submissions)

    def _add_rows_of_attempts(self) -> None:
        """Add a row for each input of the events.

        If several attempts or retries contain the same input, the row with the greatest version wins.
        """
        for logged in (*self.decoded.retries, *self.decoded.attempts):
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
                if known is not None and known.run_id is not None:
                    self.superseded.add(row.input_id)
                if known is None or row.input_id in self.inserted:
                    self.inserted[row.input_id] = InputState(row, reason, message)
                else:
                    self.moved[row.input_id] = InputState(row, reason, message)
                self.rows[row.input_id] = row

    async def _select_runs(self, matched: dict[str, list[Run]]) -> tuple[list[Selection], set[str]]:
        """Select the current run of each input that has matched runs, or that has a newer try now.

        Return the selections to write, and the ids of contested inputs. A contested input has several runs or tries, so
        its rows in ``other_runs`` must be replaced.
        """
        self.inputs.update(matched)
        matched = {**{input_id: [] for input_id in sorted(self.superseded)}, **matched}
        others: dict[str, list[tuple[Run, OtherRun]]] = defaultdict(list)
        if matched:
            for record in await self.connection.fetch(_sql["other_runs_of"], list(matched)):
                run = tables.run_of(record)
                other = OtherRun((record["chunk"], record["attempt"]), record["superseded"])
                others[record["input_id"]].append((run, other))
        contested = self.superseded | {
            i
            for i, seen in matched.items()
            if i not in self.superseded and is_contested(self.rows[i], seen, i in others)
        }
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
            others_before = {run.run_id: other for run, other in others[input_id]}
            current_before = current[input_id].run_id if input_id in current else None
            known = [*(run for run, _ in others[input_id]), *([current[input_id]] if input_id in current else [])]
            selection = select(row, known, seen)
            count(selection, current_before, others_before, self.deltas)
            selections.append(selection)
        return selections, contested
