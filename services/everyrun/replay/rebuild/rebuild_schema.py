"""Rebuild every table from the log, in a separate schema beside the live one."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
from msgspec import Struct

from everyrun.log import topics
from everyrun.log.reading import Partition, RecordRange
from everyrun.projection import tables
from everyrun.replay.errors import RebuildError
from everyrun.replay.export.selection import Source
from everyrun.replay.progress import OnRebuildProgress, RebuildProgress
from everyrun.replay.rebuild.engine import LANES, MIN_RECORDS, Engine, Offsets, applied_offsets, tables_pool
from everyrun.replay.rebuild.parallel_rebuild import PartitionShare, apply_shares, split_partitions
from everyrun.settings import Settings
from everyrun.store.migrate import SCHEMAS, migrate
from everyrun.store.session import connect
from everyrun.store.sql import beside

_sql = beside(__file__, "rebuild_schema.sql")
_PACKAGE = Path(__file__).resolve().parents[2]
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,50}")
#: A schema whose comment begins with this text was made by a rebuild and may be dropped. Do not change the text: it is
#: the comment of schemas in existing databases.
_MARK = "A rebuild of everyrun from the log, unfinished or to be looked at. It may be dropped. Rules: "

DEFAULT_SCHEMA = "everyrun_rebuild"


class RebuildResult(Struct, frozen=True):
    """The result of a rebuild: it resumed after ``before`` records, and applied ``applied`` further records."""

    schema: str
    offsets: dict[Partition, int]
    before: int
    applied: int
    seconds: float


def rules_version() -> str:
    """Return a hash of the source code that makes tables from events.

    If the tables in the schema were made with another version of this code, a rebuild starts from the beginning.
    """
    files = [path for folder in ("projection", "log") for path in (_PACKAGE / folder).rglob("*")]
    digest = hashlib.sha256()
    for path in sorted([*files, _PACKAGE / "extend" / "reserved.py"]):
        if path.suffix in (".py", ".sql"):
            digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


class RebuildSchema:
    """A schema for rebuilt tables, locked against other processes. :func:`hold_schema` makes it."""

    def __init__(self, settings: Settings, name: str, connection: asyncpg.Connection) -> None:
        self.settings = settings
        self.name = name
        self.connection = connection

    async def create(self, *, unlogged: bool = False) -> None:
        """Create the schema and its tables, unless they exist and were made by this version of the rules.

        Tables that another version made are dropped first. ``unlogged`` tables are filled faster, but Postgres empties
        them after a crash. Raises MigrationError, and RebuildError if the schema exists but no rebuild made it.
        """
        row = await self.connection.fetchrow(_sql["schema_comment"], self.name)
        if row is not None:
            comment = row["comment"] or ""
            if comment == _MARK + rules_version():
                return
            if not comment.startswith(_MARK):
                raise RebuildError(f"the schema {self.name} exists and no rebuild made it; choose another name")
            await self.drop()
        # Set the comment before creating the tables: if this process is killed in between, the next one sees that a
        # rebuild made the unfinished schema, and may drop it.
        await self.connection.execute(f"create schema {self.name}")
        await self.connection.execute(f"comment on schema {self.name} is '{_MARK}unfinished'")
        await asyncio.to_thread(
            migrate, self.settings.postgres_dsn.get_secret_value(), {self.name: SCHEMAS[tables.SCHEMA]}
        )
        if unlogged:
            for (table,) in await self.connection.fetch(_sql["tables"], self.name):
                await self.connection.execute(f"alter table {self.name}.{table} set unlogged")
        await self.connection.execute(f"comment on schema {self.name} is '{_MARK}{rules_version()}'")

    async def drop(self) -> None:
        """Drop the schema, if it exists and a rebuild made it."""
        row = await self.connection.fetchrow(_sql["schema_comment"], self.name)
        if row is not None and (row["comment"] or "").startswith(_MARK):
            await self.connection.execute(f"drop schema {self.name} cascade")

    async def apply_until(
        self,
        offsets: Offsets,
        on_progress: OnRebuildProgress,
        *,
        observe: Callable[[asyncpg.Pool], Callable[[RecordRange], Awaitable[None]]] | None = None,
        source: Source | None = None,
        processes: int = 1,
        min_records: int = MIN_RECORDS,
    ) -> RebuildResult:
        """Apply the log to the tables, from their applied offsets up to exactly the given offsets.

        ``observe``, ``source`` and ``min_records`` are passed on to :class:`Engine`. ``observe`` and ``source`` cannot
        be used with several processes. Raises RebuildError if the tables are already past the offsets, or if a process
        fails.
        """
        assert processes == 1 or (observe is None and source is None)
        identity = await topics.identity(self.settings)
        async with tables_pool(self.settings, self.name, LANES + 1) as pool:
            start = await applied_offsets(pool)
            ahead = partitions_past(start, offsets)
            if ahead:
                raise RebuildError(
                    f"the schema {self.name} is already past the wanted offsets, at {ahead}; "
                    "start from the beginning with --fresh"
                )
            if processes > 1:
                return await self._apply_in_processes(pool, identity, start, offsets, on_progress, processes)
            engine = Engine(
                self.settings,
                pool,
                identity,
                observe=observe(pool) if observe else None,
                source=source,
                min_records=min_records,
            )
            async with _reporting(engine.progress, on_progress):
                await engine.run(start, offsets)
            progress = engine.progress
            reached = await applied_offsets(pool)
            return RebuildResult(self.name, reached, progress.before, progress.applied, progress.seconds)

    async def _apply_in_processes(
        self,
        pool: asyncpg.Pool,
        identity: topics.LogIdentity,
        start: dict[Partition, int],
        offsets: Offsets,
        on_progress: OnRebuildProgress,
        processes: int,
    ) -> RebuildResult:
        shares = [
            PartitionShare(self.settings, self.name, identity, start, end)
            for end in split_partitions(offsets, processes)
        ]
        progress = RebuildProgress()
        progress.expect(start, offsets)

        async def refresh() -> None:
            reached = await applied_offsets(pool)
            progress.applied = sum(offset - start.get(partition, 0) for partition, offset in reached.items())

        async with _reporting(progress, on_progress, refresh):
            await apply_shares(shares)
        reached = await applied_offsets(pool)
        return RebuildResult(self.name, reached, progress.before, progress.applied, progress.seconds)


def partitions_past(applied: Offsets, wanted: Offsets) -> str:
    """List the partitions whose applied offset is past the wanted one, such as ``batches:0=12``; empty if none is."""
    ahead = sorted(partition for partition, offset in applied.items() if offset > wanted.get(partition, 0))
    return ", ".join(f"{topic}:{number}={applied[topic, number]}" for topic, number in ahead)


@asynccontextmanager
async def hold_schema(settings: Settings, name: str) -> AsyncIterator[RebuildSchema]:
    """Lock a schema against other rebuilds while the block runs. The schema need not exist yet.

    Raises RebuildError if the name cannot be used, or if another process has locked the schema.
    """
    if not _NAME.fullmatch(name) or name in (*SCHEMAS, "public") or name.startswith("pg_"):
        raise RebuildError(
            f"{name!r} cannot be the schema of a rebuild: use lower-case letters, digits and _, and none of "
            f"{', '.join(SCHEMAS)}, public, pg_..."
        )
    connection = await connect(settings.postgres_dsn.get_secret_value(), name="replay")
    try:
        if not await connection.fetchval(_sql["try_lock_schema"], name):
            raise RebuildError(f"another process is using the schema {name}; wait for it, or choose another name")
        yield RebuildSchema(settings, name, connection)
    finally:
        await connection.close()


@asynccontextmanager
async def _reporting(
    progress: RebuildProgress, on_progress: OnRebuildProgress, refresh: Callable[[], Awaitable[None]] | None = None
) -> AsyncIterator[None]:
    """Report the progress four times a second while the block runs, and once at its end.

    If ``refresh`` is given, it is called before each report, to update ``progress``.
    """

    async def report() -> None:
        while True:
            if refresh is not None:
                await refresh()
            on_progress(progress)
            await asyncio.sleep(0.25)

    task = asyncio.create_task(report())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        if refresh is not None:
            await refresh()
        on_progress(progress)


async def rebuild(
    settings: Settings,
    offsets: Mapping[Partition, int],
    on_progress: OnRebuildProgress,
    *,
    schema: str = DEFAULT_SCHEMA,
    fresh: bool = False,
    source: Source | None = None,
    processes: int = 1,
) -> RebuildResult:
    """Rebuild all tables from the log up to the given offsets, in a separate schema. Publishes nothing.

    An interrupted rebuild resumes, unless ``fresh``. If ``source`` is given, records are read from it instead of from
    Kafka. Raises RebuildError, MigrationError, ForeignLogError, OSError, and errors of asyncpg and aiokafka.
    """
    async with hold_schema(settings, schema) as held:
        if fresh:
            await held.drop()
        await held.create()
        return await held.apply_until(offsets, on_progress, source=source, processes=processes)
