"""``rebuild``: every table from the log, into a schema of its own beside the live one."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
from msgspec import Struct

from everyrun.errors import EveryrunError
from everyrun.log import topics
from everyrun.log.reading import Partition, RecordRange
from everyrun.projection import tables
from everyrun.replay.export.selection import Source
from everyrun.replay.rebuild.engine import LANES, LEAST_AT_ONCE, Engine, Offsets, Progress, applied_offsets, tables_pool
from everyrun.replay.rebuild.parallel_rebuild import Share, ShareError, apply_shares, split
from everyrun.settings import Settings
from everyrun.store.migrate import SCHEMAS, migrate
from everyrun.store.session import connect
from everyrun.store.sql import beside

_sql = beside(__file__, "../replay.sql")
_PACKAGE = Path(__file__).resolve().parents[2]
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,50}")
_MARK = "A rebuild of everyrun from the log, unfinished or to be looked at. It may be dropped. Rules: "

DEFAULT_SCHEMA = "everyrun_rebuild"

Tell = Callable[[Progress], None]


class ReplayError(EveryrunError):
    """It cannot be done; the text says why, and what can be."""


class Rebuilt(Struct, frozen=True):
    """What a rebuild made: the schema, how far it is, how many records it applied, in how many seconds."""

    schema: str
    offsets: dict[Partition, int]
    before: int
    applied: int
    seconds: float


def rules() -> str:
    """A name for the rules that make tables of events: another, where any of their source texts is another."""
    files = [path for folder in ("projection", "log") for path in (_PACKAGE / folder).rglob("*")]
    digest = hashlib.sha256()
    for path in sorted([*files, _PACKAGE / "extend" / "reserved.py"]):
        if path.suffix in (".py", ".sql"):
            digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


class Workplace:
    """A schema of ours to work in, held so that nobody else works in it; made, found again, or dropped."""

    def __init__(self, settings: Settings, name: str, connection: asyncpg.Connection) -> None:
        self.settings = settings
        self.name = name
        self.connection = connection

    async def make(self, *, unlogged: bool = False) -> None:
        """Have it there with the tables of these rules; one that other rules made is dropped first.

        ``unlogged`` tables are faster and end empty after a crash of Postgres, which means from the beginning.
        Raises ReplayError for a schema that is not ours, MigrationError.
        """
        row = await self.connection.fetchrow(_sql["schema_comment"], self.name)
        if row is not None:
            comment = row["comment"] or ""
            if comment == _MARK + rules():
                return
            if not comment.startswith(_MARK):
                raise ReplayError(f"there is a schema {self.name} that no rebuild made; choose another name")
            await self.drop()
        # Marked before it is filled, so that one whose making was cut short is known as ours.
        await self.connection.execute(f"create schema {self.name}")
        await self.connection.execute(f"comment on schema {self.name} is '{_MARK}unfinished'")
        await asyncio.to_thread(
            migrate, self.settings.postgres_dsn.get_secret_value(), {self.name: SCHEMAS[tables.SCHEMA]}
        )
        if unlogged:
            for (table,) in await self.connection.fetch(_sql["tables"], self.name):
                await self.connection.execute(f"alter table {self.name}.{table} set unlogged")
        await self.connection.execute(f"comment on schema {self.name} is '{_MARK}{rules()}'")

    async def drop(self) -> None:
        """Drop it, if it is there and ours."""
        row = await self.connection.fetchrow(_sql["schema_comment"], self.name)
        if row is not None and (row["comment"] or "").startswith(_MARK):
            await self.connection.execute(f"drop schema {self.name} cascade")

    async def bring_to(
        self,
        offsets: Offsets,
        tell: Tell,
        *,
        observe: Callable[[asyncpg.Pool], Callable[[RecordRange], Awaitable[None]]] | None = None,
        source: Source | None = None,
        processes: int = 1,
        least_at_once: int = LEAST_AT_ONCE,
    ) -> Rebuilt:
        """Apply the log up to exactly these offsets; what is applied already is not read again.

        Several ``processes`` take neither ``observe`` nor ``source``. Raises ReplayError where the tables are past
        the offsets, or one of the processes ended before its end.
        """
        assert processes == 1 or (observe is None and source is None)
        identity = await topics.identity(self.settings)
        async with tables_pool(self.settings, self.name, LANES + 1) as pool:
            start = await applied_offsets(pool)
            ahead = past(start, offsets)
            if ahead:
                raise ReplayError(
                    f"schema {self.name} is past that moment already, at {ahead}; begin anew with --fresh"
                )
            if processes > 1:
                return await self._bring_in_shares(pool, identity, start, offsets, tell, processes)
            engine = Engine(
                self.settings,
                pool,
                identity,
                observe=observe(pool) if observe else None,
                source=source,
                least_at_once=least_at_once,
            )
            async with _telling(engine.progress, tell):
                await engine.run(start, offsets)
            progress = engine.progress
            reached = await applied_offsets(pool)
            return Rebuilt(self.name, reached, progress.before, progress.applied, progress.seconds)

    async def _bring_in_shares(
        self,
        pool: asyncpg.Pool,
        identity: topics.LogIdentity,
        start: dict[Partition, int],
        offsets: Offsets,
        tell: Tell,
        processes: int,
    ) -> Rebuilt:
        shares = [Share(self.settings, self.name, identity, start, end) for end in split(offsets, processes)]
        progress = Progress()
        progress.expect(start, offsets)

        async def look() -> None:
            reached = await applied_offsets(pool)
            progress.applied = sum(offset - start.get(position, 0) for position, offset in reached.items())

        async with _telling(progress, tell, look):
            try:
                await apply_shares(shares)
            except ShareError as error:
                raise ReplayError(str(error)) from None
        reached = await applied_offsets(pool)
        return Rebuilt(self.name, reached, progress.before, progress.applied, progress.seconds)


def past(tables: Offsets, wanted: Offsets) -> str:
    """Where tables are past what is wanted, in words; empty where nowhere."""
    ahead = sorted(position for position, offset in tables.items() if offset > wanted.get(position, 0))
    return ", ".join(f"{topic}:{number}={tables[topic, number]}" for topic, number in ahead)


@asynccontextmanager
async def workplace(settings: Settings, name: str) -> AsyncIterator[Workplace]:
    """Hold a schema while the block runs. Raises ReplayError where its name is none, or another process holds it."""
    if not _NAME.fullmatch(name) or name in (*SCHEMAS, "public") or name.startswith("pg_"):
        raise ReplayError(f"{name!r} is no name for a schema to rebuild into: small letters, digits and _")
    connection = await connect(settings.postgres_dsn.get_secret_value(), name="replay")
    try:
        if not await connection.fetchval(_sql["hold"], name):
            raise ReplayError(f"another process works in the schema {name}; wait for it, or choose another name")
        yield Workplace(settings, name, connection)
    finally:
        await connection.close()


@asynccontextmanager
async def _telling(
    progress: Progress, tell: Tell, look: Callable[[], Awaitable[None]] | None = None
) -> AsyncIterator[None]:
    async def again() -> None:
        while True:
            if look is not None:
                await look()
            tell(progress)
            await asyncio.sleep(0.25)

    task = asyncio.create_task(again())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        if look is not None:
            await look()
        tell(progress)


async def rebuild(
    settings: Settings,
    offsets: Mapping[Partition, int],
    tell: Tell,
    *,
    schema: str = DEFAULT_SCHEMA,
    fresh: bool = False,
    source: Source | None = None,
    processes: int = 1,
) -> Rebuilt:
    """All tables as the log makes them up to these offsets, in a schema of their own. Publishes nothing.

    One that was begun before goes on where it was, unless ``fresh``. Raises ReplayError, MigrationError, errors of
    asyncpg and aiokafka, OSError, ForeignLogError.
    """
    async with workplace(settings, schema) as place:
        if fresh:
            await place.drop()
        await place.make()
        return await place.bring_to(offsets, tell, source=source, processes=processes)
