"""Publish the current state of everything that a transaction touched, after its commit.

A state is published only after its commit. So if a consumer reads a result from the topic, the table already has this
state or a later one. The publisher does not read a row again that the transaction wrote. Instead, after Kafka has
acknowledged the record, it checks if a newer state was written meanwhile. If so, it publishes the newer state too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import cast

import asyncpg

from everyrun.log.batching import group_by_weight
from everyrun.log.producer import Log
from everyrun.log.reading import OffsetRange, Partition
from everyrun.log.topics import LogIdentity
from everyrun.projection import output_records, tables
from everyrun.projection.apply import Applied
from everyrun.projection.feed import UNAVAILABLE, Feed
from everyrun.projection.offsets import applied_offsets, missing
from everyrun.projection.output_records import Row
from everyrun.projection.rules.attempts import ENDED
from everyrun.projection.rules.merge import AttemptKey
from everyrun.projection.tables import InputState
from everyrun.store.sql import beside
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(tables.__file__, "apply.sql")
#: Limits of a page, which is a group of rows that are published together: the number of rows, and the total size of
#: their runs in bytes. For a run that is read from the table, this is the compressed size in Postgres. In memory, such
#: a run is several times as large.
_PAGE_ROWS, _PAGE_BYTES = 1000, 8 << 20


class LaggingTablesError(Exception):
    """The tables lack records whose results must be published. ``gaps`` holds the missing offsets of each partition."""

    def __init__(self, gaps: dict[Partition, OffsetRange]) -> None:
        super().__init__(str(gaps))
        self.gaps = gaps


class Publisher:
    """Writes the topics ``results`` and ``reports``.

    Before the publisher reads the tables, it checks that they contain everything that it must publish. If something is
    missing, the tables were emptied or replaced after the commit. Then the publisher refills them first. Otherwise, it
    would never publish the missing states.
    """

    def __init__(self, pool: asyncpg.Pool, identity: LogIdentity, results: Log, feed: Feed) -> None:
        self._pool = pool
        self._identity = identity
        self._results = results
        self._feed = feed

    async def publish(self, applied: Iterable[Applied], needed: Mapping[Partition, int]) -> None:
        """Publish the current state of everything touched. Return when Kafka has acknowledged the newest state.

        So the last record of an input always shows its newest state, whichever worker writes the record. ``needed``
        holds the offset up to which the tables must have applied each partition. Retry while Postgres or Kafka is
        unavailable.
        """
        everything = list(applied)
        await self._retry(lambda: self._publish(everything, needed))

    async def _retry(self, publish: Callable[[], Awaitable[None]]) -> None:
        wait = 0.1
        gaps: dict[Partition, OffsetRange] = {}
        while True:
            try:
                await self._feed.fill(gaps)
                gaps = {}
                return await publish()
            except LaggingTablesError as error:
                gaps = error.gaps
            except UNAVAILABLE as error:
                _log.warning("cannot publish; will retry", error=f"{type(error).__name__}: {error}", seconds=wait)
                await self._feed.report_unavailable(error)
                await asyncio.sleep(wait)
                wait = min(wait * 2, 5.0)

    @asynccontextmanager
    async def _snapshot(self, needed: Mapping[Partition, int]) -> AsyncIterator[asyncpg.Connection]:
        """Open a snapshot of the tables. Raises LaggingTablesError if they are not applied up to ``needed``."""
        async with self._pool.acquire() as acquired, acquired.transaction(isolation="repeatable_read", readonly=True):
            connection = cast(asyncpg.Connection, acquired)
            gaps = missing(await applied_offsets(connection, self._identity), needed)
            if gaps:
                raise LaggingTablesError(gaps)
            yield connection

    async def _publish(self, applied: list[Applied], needed: Mapping[Partition, int]) -> None:
        inputs: set[str] = set().union(*(a.inputs for a in applied))
        runs = list(set().union(*(a.runs for a in applied)))
        attempts = set().union(*(a.attempts for a in applied))
        submissions = set().union(*(a.submissions for a in applied))
        states: dict[str, InputState] = {}
        for one in applied:
            states |= one.states
        known = {input_id: states[input_id] for input_id in inputs & states.keys()}
        others = list(inputs - known.keys())
        sizes: dict[str, int] = {}
        async with self._snapshot(needed) as connection:
            for start in range(0, max(len(others), len(runs)), _PAGE_ROWS):
                part = slice(start, start + _PAGE_ROWS)
                sizes |= await _sizes(connection, others[part], runs[part])
                attempts |= await _attempts_of(connection, runs[part])
        for page in pages((i, len(state.run or b"")) for i, state in known.items()):
            await self._publish_until_newest([_row(known[input_id]) for input_id in page], needed)
        await self._publish_rows({i: size for i, size in sizes.items() if i not in known}, needed)
        await self._publish_reports(attempts, submissions, needed)

    async def _publish_rows(self, sizes: Mapping[str, int], needed: Mapping[Partition, int]) -> None:
        """Read and publish the rows of these inputs; ``sizes`` holds the size of each input's run, by input id."""
        for page in pages(sizes.items()):
            async with self._snapshot(needed) as connection:
                rows = await connection.fetch(_sql["current_rows"], page)
            await self._publish_until_newest(rows, needed)

    async def _publish_until_newest(self, rows: Sequence[Row], needed: Mapping[Partition, int]) -> None:
        """Publish these rows. After the acknowledgement, publish the inputs again whose rows have changed meanwhile.

        After these rows were read, another worker or our own next transaction may have written a newer state, and
        published it before these rows. The check after the acknowledgement finds such a state. A state that is written
        after the check is certainly published after these rows.
        """
        await self._results.append([output_records.result_record(row) for row in rows])
        published = {row["input_id"]: (row["version"], row["observed_at"]) for row in rows}
        changed = {}
        async with self._snapshot(needed) as connection:
            for input_id, version, observed_at, size in await connection.fetch(
                _sql["current_versions"], list(published)
            ):
                if (version, observed_at) != published[input_id]:
                    changed[input_id] = size
        if changed:
            await self._publish_rows(changed, needed)

    async def _publish_reports(
        self, attempts: set[AttemptKey], submissions: set[str], needed: Mapping[Partition, int]
    ) -> None:
        reports = []
        async with self._snapshot(needed) as connection:
            if attempts:
                rows = await connection.fetch(_sql["current_attempts"], *tables.columns_of(sorted(attempts)))
                reports = [output_records.batch_record(row, time.time()) for row in rows]
                submissions |= {row["submission_id"] for row in rows if row["state"] in ENDED}
            if submissions:
                rows = await connection.fetch(_sql["settled_submissions"], sorted(submissions))
                reports += [output_records.submission_record(row, time.time()) for row in rows]
        if reports:
            await self._results.append(reports)


def pages(sizes: Iterable[tuple[str, int]]) -> Iterator[list[str]]:
    """Group input ids into pages within the limits. ``sizes`` holds pairs (input id, bytes of its run). Pure.

    An input whose run alone exceeds the limit has a page of its own.
    """
    for page in group_by_weight(sizes, lambda sized: sized[1], _PAGE_BYTES, _PAGE_ROWS):
        yield [identifier for identifier, _ in page]


def _row(state: InputState) -> Row:
    return dict(zip(tables.RESULT_COLUMNS, state.values(), strict=True))


async def _attempts_of(connection: asyncpg.Connection, runs: list[str]) -> set[AttemptKey]:
    """Return the attempts of these runs, which were applied earlier. Their reports may not be published yet."""
    if not runs:
        return set()
    return {(row["chunk"], row["attempt"]) for row in await connection.fetch(_sql["attempts_by_run"], runs)}


async def _sizes(connection: asyncpg.Connection, inputs: list[str], runs: list[str]) -> dict[str, int]:
    """Return the size of each input's current run, for ``inputs`` and for inputs whose current run is in ``runs``."""
    return {row["input_id"]: row["size"] for row in await connection.fetch(_sql["current_sizes"], inputs, runs)}
