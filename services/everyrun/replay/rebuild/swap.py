"""Replace the live tables with rebuilt ones while processors and readers keep running (``everyrun rebuild --swap``).

One transaction renames both schemas while it holds a lock on ``applied_offsets``. The lock does not block readers. It
blocks processors, because the first statement of every processor's transaction waits for it. When that statement gets
the lock, Postgres looks up the name of the table again, and finds the new table. So every transaction of a processor is
wholly before the swap or wholly after it. See docs/adr/0010.

This module has over 300 lines, because the swap and the checks that make it safe belong together: some of them run
before the lock, again under it, and again before the old tables are dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timedelta

import asyncpg
from msgspec import Struct

from everyrun.log.reading import Partition, bounds
from everyrun.projection import tables
from everyrun.projection.offsets import INPUTS
from everyrun.replay.errors import RebuildError
from everyrun.replay.progress import OnRebuildProgress
from everyrun.replay.rebuild.engine import applied_offsets, tables_connection
from everyrun.replay.rebuild.rebuild_schema import DEFAULT_SCHEMA, RebuildSchema, hold_schema
from everyrun.replay.rebuild.user_views import ViewLockedError, check_views, replace_views, user_views
from everyrun.settings import Settings
from everyrun.store.sql import beside

_sql = beside(__file__, "swap.sql")

LIVE = tables.SCHEMA
#: The schema of the tables that were live before the swap.
BEFORE = LIVE + "_before"
#: A schema with this comment was left by a swap and may be dropped. Do not change the text: it is the comment of
#: schemas in existing databases.
_REPLACED = "Replaced by a rebuild. It may be dropped."
#: The rebuilt tables catch up with the live tables in rounds. After a round that applied fewer records than this, the
#: swap takes the lock, and applies the last records while it holds the lock.
_NEAR = 2000
#: Maximum number of rounds of catching up; after the last one, the lock is taken anyway.
_ROUNDS = 20
#: The lock is not taken while a transaction is older than _LONG. The swap waits up to _LONG_WITHIN seconds for such a
#: transaction to end.
_LONG, _LONG_WITHIN = timedelta(seconds=5), 600.0
#: Seconds to wait, while the lock is held, for transactions that began before the last record was applied.
_SHORT_WITHIN = 30.0
#: Maximum number of times that the lock is taken to try the swap.
_TRIES = 5
#: Seconds to wait, before the old tables are dropped, for transactions that began before the swap.
_READERS_WITHIN = 60.0

Notify = Callable[[str], None]
"""Called with a sentence that tells the waiting person what the swap is waiting for."""


class SwapResult(Struct, frozen=True):
    """The result of a swap.

    ``records`` counts all records that this swap applied, and ``last`` those that it applied while it held the lock.
    ``lock_seconds`` says how long it held the lock. If the schema of the old tables could not be dropped, ``left_over``
    is its name, and ``reason`` says why.
    """

    records: int
    last: int
    lock_seconds: float
    left_over: str | None
    reason: str


class _TryAgainError(Exception):
    """The swap was not done: the lock was not taken, or was released again. A retry may succeed."""


async def rebuild_and_swap(
    settings: Settings,
    on_progress: OnRebuildProgress,
    *,
    schema: str = DEFAULT_SCHEMA,
    fresh: bool = False,
    processes: int = 1,
    notify: Notify = lambda _: None,
) -> SwapResult:
    """Rebuild the tables up to the offsets of the live ones, and make them the live tables. Publishes nothing.

    Objects that are not Everyrun's own may depend on the live tables. The swap never drops such objects. Views are
    kept, and read the new tables afterwards: see :mod:`everyrun.replay.rebuild.user_views`. The swap looks for other
    objects at the start, a second time while it holds the lock, and a third time before it drops the old tables.

    Raises what :func:`everyrun.replay.rebuild.rebuild_schema.rebuild` raises, and RebuildError if:

    - such an object exists that is not a view, or a view that does not fit the new tables;
    - a schema ``everyrun_before`` exists that no swap left;
    - transactions that would see only a part of the new tables do not end in time;
    - this database role may not see whether another role's session has such a transaction.

    If an error is raised, the live tables are unchanged.
    """
    async with hold_schema(settings, schema) as rebuilt:
        if fresh:
            await rebuilt.drop()
        await rebuilt.create()
        await _check_dependents(rebuilt.connection, rebuilt)
        await _check_visible(rebuilt.connection)
        await _drop_left_over(rebuilt.connection)
        await check_views(rebuilt.connection, LIVE, rebuilt.name, BEFORE)
        done = _CountedRebuild(on_progress)
        async with tables_connection(settings, LIVE) as live:
            for _ in range(_ROUNDS):
                target = await _target(settings, live, rebuilt, notify)
                if await done.apply_until(rebuilt, target, processes) < _NEAR:
                    break
            last, seconds, swapped_at = await _swap_with_retries(settings, live, rebuilt, done, notify)
            reason = await _drop_old(rebuilt, live, swapped_at)
    return SwapResult(done.applied, last, seconds, BEFORE if reason else None, reason)


class _CountedRebuild:
    """Applies the log to the rebuilt tables round by round, and counts the records of all rounds."""

    def __init__(self, on_progress: OnRebuildProgress) -> None:
        self.applied = 0
        self._on_progress = on_progress

    async def apply_until(self, rebuilt: RebuildSchema, target: dict[Partition, int], processes: int = 1) -> int:
        """Apply the log up to the target; return the number of records that were applied."""
        result = await rebuilt.apply_until(target, self._on_progress, processes=processes)
        self.applied += result.applied
        return result.applied


async def _target(
    settings: Settings, live: asyncpg.Connection, rebuilt: RebuildSchema, notify: Notify
) -> dict[Partition, int]:
    """Wait until the live tables have caught up with the rebuilt ones in every partition; return the live offsets."""
    notified = False
    while True:
        target = await _live_offsets(settings, live)
        async with tables_connection(settings, rebuilt.name) as connection:
            applied = await applied_offsets(connection)
        behind = [partition for partition, offset in applied.items() if target.get(partition, 0) < offset]
        if not behind:
            return target
        if not notified:
            notify(
                f"The live tables are behind the rebuilt ones in {len(behind)} partitions; waiting for the processor."
            )
            notified = True
        await asyncio.sleep(0.2)


async def _live_offsets(settings: Settings, live: asyncpg.Connection) -> dict[Partition, int]:
    """Return the applied offset of every partition in the live tables, but at most the end of the log.

    The offset in a row that someone has tampered with may be past the end.
    """
    applied = await applied_offsets(live)
    ends = (await bounds(settings, INPUTS)).end
    return {partition: min(applied.get(partition, 0), end) for partition, end in ends.items()}


async def _swap_with_retries(
    settings: Settings, live: asyncpg.Connection, rebuilt: RebuildSchema, done: _CountedRebuild, notify: Notify
) -> tuple[int, float, datetime]:
    reason = ""
    for _ in range(_TRIES):
        try:
            await _wait_for_snapshots(rebuilt, live, await _server_time(rebuilt) - _LONG, _LONG_WITHIN, notify)
            return await _swap(settings, live, rebuilt, done)
        except _TryAgainError as error:
            reason = str(error)
            notify(f"Not swapped yet: {reason}. Trying again.")
            await done.apply_until(rebuilt, await _target(settings, live, rebuilt, notify))
    raise RebuildError(f"not swapped, the live tables are unchanged: {reason}")


async def _swap(
    settings: Settings, live: asyncpg.Connection, rebuilt: RebuildSchema, done: _CountedRebuild
) -> tuple[int, float, datetime]:
    """While holding the lock, apply the last records, wait until no old snapshot is left, and rename the schemas.

    Returns the number of records applied here, the seconds that the lock was held, and the server's time after the
    renaming.
    """
    async with live.transaction():
        await live.execute(_sql["lock_offsets"])
        began = time.monotonic()
        target = await _live_offsets(settings, live)
        last = await done.apply_until(rebuilt, target)
        async with tables_connection(settings, rebuilt.name) as connection:
            applied = await applied_offsets(connection)
        different = [partition for partition in target if applied.get(partition, 0) != target[partition]]
        if different:
            raise _TryAgainError(f"the rebuilt tables have other offsets in {len(different)} partitions")
        await _wait_for_snapshots(rebuilt, live, await _server_time(rebuilt), _SHORT_WITHIN)
        # Check again: the rebuild may have taken an hour since the first check.
        await _check_dependents(live, rebuilt)
        comment = await live.fetchval(_sql["schema_comment"], LIVE)
        for (grant,) in await live.fetch(_sql["grants"], LIVE, rebuilt.name):
            await live.execute(grant)
        views = await user_views(live, LIVE, rebuilt.name, BEFORE)
        await live.execute(f"alter schema {LIVE} rename to {BEFORE}")
        await live.execute(f"alter schema {rebuilt.name} rename to {LIVE}")
        try:
            await replace_views(live, views)
        except ViewLockedError as error:
            raise _TryAgainError(str(error)) from None
        await live.execute(await live.fetchval(_sql["comment"], LIVE, comment))
        await live.execute(f"comment on schema {BEFORE} is '{_REPLACED}'")
    return last, time.monotonic() - began, await _server_time(rebuilt)


async def _server_time(rebuilt: RebuildSchema) -> datetime:
    now: datetime = await rebuilt.connection.fetchval(_sql["server_time"])
    return now


async def _wait_for_snapshots(
    rebuilt: RebuildSchema,
    live: asyncpg.Connection,
    before: datetime,
    seconds: float,
    notify: Notify = lambda _: None,
) -> None:
    """Wait until no open transaction has a snapshot from before the time ``before``.

    Such a transaction would see only a part of the new tables. Raises _TryAgainError if one is still open after
    ``seconds``, and RebuildError if this database role may not see another role's session.
    """
    began = time.monotonic()
    notified = False
    while True:
        await _check_visible(rebuilt.connection)
        old = await rebuilt.connection.fetchrow(_sql["old_snapshots"], before, live.get_server_pid())
        if old is None:
            return
        session = f"{old['application_name'] or 'an unnamed application'} (pid {old['pid']}), begun {old['age']} ago"
        if time.monotonic() - began > seconds:
            raise _TryAgainError(f"a transaction of {session}, still reads the tables from before the swap")
        if not notified and time.monotonic() - began > 1:
            notify(f"Waiting for a transaction of {session}.")
            notified = True
        await asyncio.sleep(0.02)


async def _check_visible(connection: asyncpg.Connection) -> None:
    """Raise RebuildError if this database role may not see whether some session has a transaction."""
    hidden = await connection.fetchrow(_sql["hidden_session"])
    if hidden is not None:
        raise RebuildError(
            f"the session of {hidden['usename']} (pid {hidden['pid']}) is hidden from this role, so the swap cannot "
            f"wait for its transaction. A superuser may allow it: grant pg_read_all_stats to {hidden['own']}"
        )


async def _foreign_objects(connection: asyncpg.Connection, schema: str, other: str, *, views: bool) -> str:
    """List the objects in the schema, and objects that depend on it, unless they are Everyrun's own; empty if none.

    An object in the schema is Everyrun's own if the schema ``other`` contains it too. Views are listed only if
    ``views`` is true.
    """
    found = [row[0] for row in await connection.fetch(_sql["dependents"], schema, views)]
    found += [row[0] for row in await connection.fetch(_sql["foreign_objects"], schema, other, views)]
    return ", ".join(found)


async def _check_dependents(connection: asyncpg.Connection, rebuilt: RebuildSchema) -> None:
    found = await _foreign_objects(connection, LIVE, rebuilt.name, views=False)
    if found:
        raise RebuildError(
            f"{found}: not Everyrun's own, and would stay with the old tables. Drop it before the swap and create it "
            "again after it."
        )


async def _drop_before(connection: asyncpg.Connection) -> str:
    """Drop the schema of the old tables. Return an empty text, or the reason if it cannot be dropped."""
    try:
        async with connection.transaction():
            await connection.execute(_sql["lock_within"], str(int(_READERS_WITHIN * 1000)))
            # Lock the tables first, so that nobody creates a dependent object between the check and the drop.
            for (lock,) in await connection.fetch(_sql["lock_all"], BEFORE):
                await connection.execute(lock)
            found = await _foreign_objects(connection, BEFORE, LIVE, views=True)
            if not found:
                await connection.execute(f"drop schema {BEFORE} cascade")
                return ""
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
        return "a transaction holds a lock of the old tables"
    return f"{found}: not Everyrun's own, and would be dropped with the old tables"


async def _drop_left_over(connection: asyncpg.Connection) -> None:
    """Drop the old tables if an earlier swap left them. Raises RebuildError if they cannot be dropped."""
    if not await connection.fetchval("select to_regnamespace($1) is not null", BEFORE):
        return
    if await connection.fetchval(_sql["schema_comment"], BEFORE) != _REPLACED:
        raise RebuildError(f"the schema {BEFORE} exists and no swap left it; rename it: the swap needs this name")
    reason = await _drop_before(connection)
    if reason:
        raise RebuildError(f"the schema {BEFORE} of an earlier swap cannot be dropped: {reason}")


async def _drop_old(rebuilt: RebuildSchema, live: asyncpg.Connection, swapped_at: datetime) -> str:
    """Wait until no transaction can read the old tables, and drop them. Return an empty text, or why they were kept."""
    try:
        await _wait_for_snapshots(rebuilt, live, swapped_at, _READERS_WITHIN)
        reason = await _drop_before(rebuilt.connection)
    except (_TryAgainError, RebuildError) as error:
        reason = str(error)
    return (
        reason
        and f"{reason}. The next swap drops it if nothing is in the way. To drop it now: drop schema {BEFORE} cascade"
    )
