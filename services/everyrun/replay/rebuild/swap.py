"""``--swap``: rebuilt tables take the place of the live ones, while processors and readers go on.

Both schemas are renamed in one transaction, under a lock of ``applied_offsets`` that lets readers pass and no
processor. A processor's transaction is wholly before it or wholly after it: its first statement in the tables is the
one that waits for this lock, and names are looked up again once it has it. See docs/adr/ for why.
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
from everyrun.replay.rebuild.engine import INPUTS, applied_offsets, tables_connection
from everyrun.replay.rebuild.rebuild import DEFAULT_SCHEMA, ReplayError, Tell, Workplace, workplace
from everyrun.settings import Settings
from everyrun.store.sql import beside

_sql = beside(__file__, "swap.sql")

LIVE = tables.SCHEMA
BEFORE = LIVE + "_before"
#: The comment by which an old schema is known as ours to drop.
_REPLACED = "Replaced by a rebuild. It may be dropped."
#: Nearer than this the lock is taken; the rest is applied under it.
_NEAR = 2000
#: Rounds of catching up before the lock is taken however far it is.
_ROUNDS = 20
#: The lock is not taken while a transaction looks that is older than this, in seconds; how long that is waited for.
_LONG, _LONG_WITHIN = timedelta(seconds=5), 600.0
#: Seconds that the lock is held for the transactions that began before the last record was applied under it.
_SHORT_WITHIN = 30.0
_TRIES = 5
#: Seconds that readers from before the swap get to end in, before the old tables are dropped.
_READERS_WITHIN = 60.0

Say = Callable[[str], None]


class Swapped(Struct, frozen=True):
    """What was done: records applied in all, and under the lock; seconds it was held; the old schema if it is left."""

    records: int
    last: int
    held: float
    left_over: str | None
    why: str


class _TryAgainError(Exception):
    """The lock was given up for now."""


async def rebuild_and_swap(
    settings: Settings,
    tell: Tell,
    *,
    schema: str = DEFAULT_SCHEMA,
    fresh: bool = False,
    processes: int = 1,
    say: Say = lambda _: None,
) -> Swapped:
    """Rebuild up to the live tables' offsets, then put it live at exactly those. Publishes nothing.

    What somebody hangs on the live tables is never dropped: it is looked for at the start, again under the lock, and in
    the old tables before they are dropped, which are then left. Raises ReplayError where there is such a thing, where a
    schema ``everyrun_before`` is not ours to drop, where transactions that would see half of the new tables do not end,
    or this role may not see those of another role's session; else what
    :func:`everyrun.replay.rebuild.rebuild.rebuild` raises. The live tables are then as before.
    """
    async with workplace(settings, schema) as place:
        if fresh:
            await place.drop()
        await place.make()
        await _check_dependents(place.connection, place)
        await _check_seen(place.connection)
        await _drop_unfinished(place.connection)
        done = _Records(tell)
        async with tables_connection(settings, LIVE) as live:
            for _ in range(_ROUNDS):
                target = await _target(settings, live, place, say)
                if await done.bring(place, target, processes) < _NEAR:
                    break
            last, held, since = await _swap_again(settings, live, place, done, say)
            left = await _drop_old(place, live, since)
    return Swapped(done.applied, last, held, BEFORE if left else None, left)


class _Records:
    """Counts what is applied over all rounds."""

    def __init__(self, tell: Tell) -> None:
        self.applied = 0
        self._tell = tell

    async def bring(self, place: Workplace, target: dict[Partition, int], processes: int = 1) -> int:
        made = await place.bring_to(target, self._tell, processes=processes)
        self.applied += made.applied
        return made.applied


async def _target(settings: Settings, live: asyncpg.Connection, place: Workplace, say: Say) -> dict[Partition, int]:
    """Where the live tables are; waits until they are nowhere behind the rebuilt ones."""
    said = False
    while True:
        target = await _live_offsets(settings, live)
        async with tables_connection(settings, place.name) as there:
            made = await applied_offsets(there)
        behind = [position for position, offset in made.items() if target.get(position, 0) < offset]
        if not behind:
            return target
        if not said:
            say(f"The live tables are behind the rebuilt ones in {len(behind)} partitions; waiting for the processor.")
            said = True
        await asyncio.sleep(0.2)


async def _live_offsets(settings: Settings, live: asyncpg.Connection) -> dict[Partition, int]:
    """The live offsets of every partition, none past the end of the log (one that was tampered with may be)."""
    applied = await applied_offsets(live)
    ends = (await bounds(settings, INPUTS)).end
    return {position: min(applied.get(position, 0), end) for position, end in ends.items()}


async def _swap_again(
    settings: Settings, live: asyncpg.Connection, place: Workplace, done: _Records, say: Say
) -> tuple[int, float, datetime]:
    why = ""
    for _ in range(_TRIES):
        try:
            await _wait_for_snapshots(place, live, await _clock(place) - _LONG, _LONG_WITHIN, say)
            return await _swap(settings, live, place, done)
        except _TryAgainError as error:
            why = str(error)
            say(f"Not yet: {why}.")
            await done.bring(place, await _target(settings, live, place, say))
    raise ReplayError(f"not swapped, the live tables are as before: {why}")


async def _swap(
    settings: Settings, live: asyncpg.Connection, place: Workplace, done: _Records
) -> tuple[int, float, datetime]:
    """Everything under the lock: the last records, the wait for old snapshots, the renaming."""
    async with live.transaction():
        await live.execute(_sql["lock_offsets"])
        began = time.monotonic()
        target = await _live_offsets(settings, live)
        last = await done.bring(place, target)
        async with tables_connection(settings, place.name) as there:
            made = await applied_offsets(there)
        different = [p for p in target if made.get(p, 0) != target[p]]
        if different:
            raise _TryAgainError(f"the rebuilt tables are elsewhere in {len(different)} partitions")
        await _wait_for_snapshots(place, live, await _clock(place), _SHORT_WITHIN)
        # The rebuild may have taken an hour.
        await _check_dependents(live, place)
        comment = await live.fetchval(_sql["schema_comment"], LIVE)
        for (grant,) in await live.fetch(_sql["grants"], LIVE, place.name):
            await live.execute(grant)
        await live.execute(f"alter schema {LIVE} rename to {BEFORE}")
        await live.execute(f"alter schema {place.name} rename to {LIVE}")
        await live.execute(await live.fetchval(_sql["comment"], LIVE, comment))
        await live.execute(f"comment on schema {BEFORE} is '{_REPLACED}'")
    return last, time.monotonic() - began, await _clock(place)


async def _clock(place: Workplace) -> datetime:
    """The server's own."""
    moment: datetime = await place.connection.fetchval(_sql["clock"])
    return moment


async def _wait_for_snapshots(
    place: Workplace, live: asyncpg.Connection, moment: datetime, seconds: float, say: Say = lambda _: None
) -> None:
    """Return when no transaction has a snapshot older than the moment: it would see the new tables only in part.

    Raises _TryAgainError where one is still there after so many seconds, ReplayError where one could not be seen.
    """
    began = time.monotonic()
    said = False
    while True:
        await _check_seen(place.connection)
        old = await place.connection.fetchrow(_sql["old_snapshots"], moment, live.get_server_pid())
        if old is None:
            return
        who = f"{old['application_name'] or 'somebody'} (pid {old['pid']}), begun {old['age']} ago"
        if time.monotonic() - began > seconds:
            raise _TryAgainError(f"a transaction of {who}, looks at the tables as they were")
        if not said and time.monotonic() - began > 1:
            say(f"Waiting for a transaction of {who}.")
            said = True
        await asyncio.sleep(0.02)


async def _check_seen(connection: asyncpg.Connection) -> None:
    """Raise ReplayError where there is a session whose transaction this role may not see."""
    unseen = await connection.fetchrow(_sql["unseen"])
    if unseen is not None:
        raise ReplayError(
            f"whether the session of {unseen['usename']} (pid {unseen['pid']}) looks at the tables cannot be seen, so "
            f"it cannot be waited for. A superuser may allow it: grant pg_read_all_stats to {unseen['own']}"
        )


async def _hung_on(connection: asyncpg.Connection, schema: str, other: str) -> str:
    """What is not Everyrun's own and hangs on the schema, or is in it and not in the other; empty where nothing."""
    found = [row[0] for row in await connection.fetch(_sql["dependents"], schema)]
    found += [row[0] for row in await connection.fetch(_sql["foreign_objects"], schema, other)]
    return ", ".join(found)


async def _check_dependents(connection: asyncpg.Connection, place: Workplace) -> None:
    found = await _hung_on(connection, LIVE, place.name)
    if found:
        raise ReplayError(
            f"{found}: not Everyrun's own, and would stay with the old tables. Drop it before the swap and make it "
            "again after it."
        )


async def _drop_before(connection: asyncpg.Connection) -> str:
    """Drop the old tables; why not, where that would take something with it, or somebody does not let go of them."""
    try:
        async with connection.transaction():
            await connection.execute(_sql["lock_within"], str(int(_READERS_WITHIN * 1000)))
            # So that nothing is hung on them between the look and the drop.
            for (lock,) in await connection.fetch(_sql["lock_all"], BEFORE):
                await connection.execute(lock)
            found = await _hung_on(connection, BEFORE, LIVE)
            if not found:
                await connection.execute(f"drop schema {BEFORE} cascade")
                return ""
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
        return "a transaction holds a lock of the old tables"
    return f"{found}: not Everyrun's own, and would be dropped with the old tables"


async def _drop_unfinished(connection: asyncpg.Connection) -> None:
    """Drop what an earlier swap left behind. Raises ReplayError where it is not ours to drop."""
    if not await connection.fetchval("select to_regnamespace($1) is not null", BEFORE):
        return
    if await connection.fetchval(_sql["schema_comment"], BEFORE) != _REPLACED:
        raise ReplayError(f"there is a schema {BEFORE} that no swap left behind; rename it, the swap needs its name")
    why = await _drop_before(connection)
    if why:
        raise ReplayError(f"the schema {BEFORE} of an earlier swap cannot be dropped: {why}")


async def _drop_old(place: Workplace, live: asyncpg.Connection, swapped_at: datetime) -> str:
    """Drop the old tables once nobody can be reading them any more; why not, where somebody may."""
    try:
        await _wait_for_snapshots(place, live, swapped_at, _READERS_WITHIN)
        why = await _drop_before(place.connection)
    except (_TryAgainError, ReplayError) as error:
        why = str(error)
    return why and f"{why}. The next swap drops it when nothing is in the way, or: drop schema {BEFORE} cascade"
