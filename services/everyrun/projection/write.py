"""What an application changed, into the tables, each by a set-based statement. The caller's transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import asyncpg

from everyrun.extend import reserved
from everyrun.projection import tables
from everyrun.projection.decode import Fact
from everyrun.projection.decoded_polls import Content
from everyrun.projection.rules import attempts, decisions
from everyrun.projection.rules.run_selection import Decision, Deltas, Home, version_of
from everyrun.projection.run_matcher import Matching
from everyrun.projection.state import State
from everyrun.store.sql import beside

_sql = beside(__file__, "apply.sql")


class ConflictError(Exception):
    """Another transaction changed a row between our reading and our writing it: begin again."""


async def results(
    connection: asyncpg.Connection, states: Mapping[str, State], fresh: Collection[str], versions: Mapping[str, str]
) -> None:
    """Rows as they are now; ``fresh`` ones are not there yet, the others had these versions. Raises ConflictError."""
    if fresh:
        values = (states[input_id].values() for input_id in sorted(fresh))
        await tables.copy(connection, "results", tables.RESULT_COLUMNS, values)
    staged = [states[i].staged(versions[i]) for i in sorted(states.keys() - set(fresh))]
    if staged:
        await tables.copy(connection, "staged_results", tables.STAGED_COLUMNS, staged)
        done = await connection.execute(_sql["update_results"])
        if done != f"UPDATE {len(staged)}":
            raise ConflictError(f"{done} of {len(staged)} rows")


async def duplicates(connection: asyncpg.Connection, decided: Sequence[Decision], crowded: Collection[str]) -> None:
    """The duplicates of the ``crowded`` inputs, in the place of those that are there."""
    if not crowded:
        return
    await connection.execute(_sql["delete_duplicates"], sorted(crowded))
    values = [
        tables.duplicate(run, decision.row, version_of(run))
        for decision in decided
        if decision.row.input_id in crowded
        for run in decision.losers
    ]
    if values:
        await tables.copy(connection, "duplicate_runs", tables.DUPLICATE_COLUMNS, values)


async def unmatched(connection: asyncpg.Connection, matching: Matching, content: Content) -> None:
    """Runs that no input is known for; those that were unmatched before and are not any more are taken away."""
    known = matching.known
    if known:
        await connection.execute(_sql["delete_unmatched"], list(known))
    values = []
    for run, reason in matching.unmatched:
        before = known.get(run.run_id)
        seen = [m for m in (content.first_seen.get(run.run_id), before and before["first_seen"]) if m]
        values.append(tables.unmatched(run, reason, min(seen), matching.fingerprints(run), matching.bindings(run)))
    if values:
        await tables.copy(connection, "unmatched_runs", tables.UNMATCHED_COLUMNS, values)


async def rest(connection: asyncpg.Connection, content: Content) -> None:
    """What is joined with nothing: submissions, deliveries, decisions, the quarantine."""
    if content.submissions:
        brought: list[Any] = [fact.event for fact in content.submissions]
        await connection.execute(_sql["insert_submissions"], *tables.submission_arrays(brought))
    if content.deliveries:
        rows = []
        for fact in content.deliveries:
            event: Any = fact.event
            key = reserved.read(event.metadata)
            bound = (key.chunk, key.attempt, key.input) if key else (None, None, None)
            rows.append((event.run_id, event.event_type, *bound, fact.time))
        await connection.execute(_sql["insert_deliveries"], *_columns(rows))
    for fact in content.decisions:
        await connection.execute(_sql["insert_decision"], *decisions.values(fact))
    for fact in content.quarantined:
        statement, values = tables.quarantine_change(fact)
        await connection.execute(_sql[statement], *values)


async def batches(connection: asyncpg.Connection, facts: Sequence[Fact], deltas: Deltas) -> None:
    """Attempts as the events say, their counters moved, and the state that comes of both."""
    upserts = sorted((attempts.upsert_of(fact) for fact in facts), key=lambda upsert: (upsert.chunk, upsert.attempt))
    for upsert in upserts:
        deltas.touch((upsert.chunk, upsert.attempt))
    if upserts:
        await connection.executemany(_sql["upsert_attempt"], upserts)
    homes = deltas.homes()
    if not homes:
        return
    changed = []
    for record in await connection.fetch(_sql["lock_attempts"], *_columns(homes)):
        home = (record["chunk"], record["attempt"])
        counts = attempts.moved(tables.counts_of(record["counts"]), deltas.counts[home])
        runs = record["runs_observed"] + deltas.runs.get(home, 0)
        changed.append((home, record, counts, runs, attempts.state_of(dict(record), counts, runs)))
    last = await _last_settled(connection, [home for home, *_, state in changed if state in ("SETTLED", "REFUSED")])
    values = [
        (
            *home,
            tables.json_of(counts),
            runs,
            record["duplicates"] + deltas.duplicates.get(home, 0),
            state,
            last.get(home),
        )
        for home, record, counts, runs, state in changed
    ]
    if values:
        await connection.execute(_sql["update_attempts"], *_columns(values))


async def _last_settled(connection: asyncpg.Connection, ended: Sequence[Home]) -> dict[Home, Any]:
    if not ended:
        return {}
    records = await connection.fetch(_sql["last_settled"], *_columns(ended))
    return {(record["chunk"], record["attempt"]): record["settled_at"] for record in records}


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
