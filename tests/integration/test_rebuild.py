"""A rebuild makes the same tables as the processor, and is swapped in while services and readers run."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from pydantic import SecretStr

from everyrun.log import topics
from everyrun.log.producer import Producer
from everyrun.log.reading import bounds
from everyrun.projection import tables
from everyrun.projection.offsets import INPUTS
from everyrun.replay.errors import RebuildError
from everyrun.replay.log_position import resolve_offsets
from everyrun.replay.rebuild import rebuild_schema as rebuilding
from everyrun.replay.rebuild import swap, user_views
from everyrun.replay.rebuild.engine import applied_offsets
from everyrun.replay.rebuild.parallel_rebuild import PartitionShare, apply_shares, split_partitions
from everyrun.replay.rebuild.rebuild_schema import DEFAULT_SCHEMA, rebuild
from everyrun.replay.rebuild.swap import rebuild_and_swap
from everyrun.settings import Settings
from everyrun.store.migrate import SCHEMAS, migrate
from tests.conftest import eventually
from tests.integration.services import ServiceProcess
from tests.records import a_world, apart

pytestmark = pytest.mark.stack

OUTPUTS = ("results", "reports", "quarantine")
TABLES = ("submissions", "batches", "results", "other_runs", "unmatched_runs", "deliveries", "quarantine")


def quiet(_progress: object) -> None:
    pass


async def connect(settings: Settings, schema: str = "everyrun") -> asyncpg.Connection:
    connection = await asyncpg.connect(
        settings.postgres_dsn.get_secret_value(), server_settings={"search_path": schema}
    )
    await tables.setup_connection(connection)
    return connection


async def contents(settings: Settings, schema: str) -> dict[str, list[str]]:
    """Return every row of every table as text, and the offsets."""
    connection = await connect(settings, schema)
    try:
        return {
            table: [row[0] for row in await connection.fetch(f"select t::text from {table} t order by 1")]
            for table in (*TABLES, "applied_offsets")
        }
    finally:
        await connection.close()


async def write(settings: Settings, *seeds: int) -> None:
    """Append the events of a random world per seed, with ids of its own."""
    async with Producer(settings) as producer:
        for seed in seeds:
            await producer.append(apart(a_world(random.Random(seed), chunks=6, inputs=10), str(seed)))


async def everything_applied(settings: Settings) -> None:
    connection = await connect(settings)

    async def behind() -> dict:
        applied = await applied_offsets(connection)
        return {p: (applied.get(p, 0), end) for p, end in (await ends(settings)).items() if applied.get(p, 0) != end}

    try:
        deadline = time.monotonic() + 90
        while left := await behind():
            assert time.monotonic() < deadline, f"not applied, and where the log ends: {left}"
            await asyncio.sleep(0.1)
    finally:
        await connection.close()


async def ends(settings: Settings, topics: Sequence[str] = INPUTS) -> dict:
    return (await bounds(settings, topics)).end


async def rebuilt(settings: Settings, **more) -> rebuilding.RebuildResult:
    return await rebuild(settings, await resolve_offsets(settings, None), quiet, **more)


async def test_a_rebuild_equals_the_live_tables_and_publishes_nothing(
    settings: Settings, service: Callable[..., ServiceProcess], tmp_path: Path
) -> None:
    await write(settings, 1, 2)
    await service("processor", EVERYRUN_DATA_DIR=tmp_path).ready()
    await everything_applied(settings)
    published = await eventually_quiet(settings)
    made = await rebuilt(settings)
    assert made.applied == sum((await ends(settings)).values())
    assert {p: o for p, o in made.offsets.items() if o} == {p: o for p, o in (await ends(settings)).items() if o}
    live, beside = await rows(settings, "everyrun"), await rows(settings, DEFAULT_SCHEMA)
    assert beside == live
    progress_seen: list[tuple[int, int]] = []
    shared = await rebuild(
        settings,
        await resolve_offsets(settings, None),
        lambda progress: progress_seen.append((progress.applied, progress.total)),
        schema="in_two",
        processes=2,
    )
    assert shared.applied == made.applied
    assert progress_seen[-1] == (made.applied, made.applied)
    assert await rows(settings, "in_two") == beside
    assert await ends(settings, OUTPUTS) == published
    # A second run applies only the newer records.
    await write(settings, 3)
    assert (await rebuilt(settings)).before == made.applied
    with pytest.raises(RebuildError, match="already past"):
        await rebuild(settings, {}, quiet)


async def rows(settings: Settings, schema: str) -> dict[str, list[str]]:
    """Return ``contents`` without partitions at offset 0."""
    found = await contents(settings, schema)
    found["applied_offsets"] = [row for row in found["applied_offsets"] if ",0," not in row]
    return found


async def test_a_failed_process_fails_the_rebuild_with_its_reason(settings: Settings) -> None:
    await write(settings, 1)
    end = await resolve_offsets(settings, None)
    cluster_id = await topics.identity(settings)
    await rebuild(settings, {}, quiet, schema="in_two", processes=2)
    first, second = split_partitions(end, 2)
    shares = [
        PartitionShare(settings, "in_two", cluster_id, {}, first),
        PartitionShare(settings, "not_there", cluster_id, {}, second),
    ]
    with pytest.raises(RebuildError, match="UndefinedTableError"):
        await apply_shares(shares)
    assert not multiprocessing.active_children()
    made = await rebuild(settings, end, quiet, schema="in_two", processes=2)
    assert made.before + made.applied == sum(end.values())


async def eventually_quiet(settings: Settings) -> dict:
    """Return the ends of the published topics once they stop growing."""
    seen = None
    while seen != (seen := await ends(settings, OUTPUTS)):
        await asyncio.sleep(1)
    return seen


async def test_a_rebuild_does_not_touch_schemas_of_others(settings: Settings) -> None:
    connection = await connect(settings)
    await connection.execute("create schema mine")
    for name in ("everyrun", "everyrun_queue", "public", "mine", "x; drop schema mine"):
        with pytest.raises(RebuildError):
            await rebuilt(settings, schema=name)
    await rebuilt(settings)
    await connection.execute(f"comment on schema {DEFAULT_SCHEMA} is '{rebuilding._MARK}older rules'")
    await connection.execute(
        f"insert into {DEFAULT_SCHEMA}.submissions values ('of older rules', 'w', null, 1, 1, now())"
    )
    await rebuilt(settings)
    assert await connection.fetchval(f"select count(*) from {DEFAULT_SCHEMA}.submissions") == 0
    async with rebuilding.hold_schema(settings, DEFAULT_SCHEMA):
        with pytest.raises(RebuildError, match="another process"):
            await rebuilt(settings)
    await connection.close()


async def test_readers_do_not_notice_a_swap_under_traffic(
    settings: Settings, service: Callable[..., ServiceProcess], tmp_path: Path
) -> None:
    """Readers never see fewer rows, an error, or an unbalanced report."""
    await write(settings, *range(10, 14))
    processor = await service("processor", EVERYRUN_DATA_DIR=tmp_path).ready()
    reader, asking = await connect(settings), await connect(settings)
    stop = asyncio.Event()
    seen: list[int] = []

    async def read() -> None:
        while not stop.is_set():
            seen.append(await reader.fetchval("select count(*) from everyrun.results"))
            assert not await reader.fetch("select * from everyrun.report where not balanced")
            assert seen == sorted(seen)

    async def keep_writing() -> None:
        seed = 100
        while not stop.is_set():
            await write(settings, seed)
            seed += 1
            await asyncio.sleep(0.5)

    tasks = [asyncio.create_task(read()), asyncio.create_task(keep_writing())]
    await eventually(lambda: seen and seen[-1] > 0, "rows are there")
    before = await asking.fetchval("select 'everyrun.results'::regclass::oid")
    comment = "select obj_description('everyrun'::regnamespace)"
    described = await asking.fetchval(comment)
    assert described
    for _ in range(2):
        done = await rebuild_and_swap(settings, quiet)
        assert done.left_over is None, done
    after = len(seen)
    await eventually(lambda: len(seen) > after + 5, "the reader keeps reading")
    stop.set()
    await asyncio.gather(*tasks)
    assert await asking.fetchval("select 'everyrun.results'::regclass::oid") != before
    await everything_applied(settings)
    assert processor.process.poll() is None
    await rebuilt(settings)
    live, beside = await contents(settings, "everyrun"), await contents(settings, DEFAULT_SCHEMA)
    for table in TABLES:
        assert live[table] == beside[table], table
    assert await asking.fetchval("select to_regnamespace('everyrun_before')") is None
    assert await asking.fetchval(comment) == described
    await reader.close()
    await asking.close()


async def a_role(connection: asyncpg.Connection) -> str:
    """Create a role that may log in. Its name is random: roles belong to the whole server."""
    name = "r" + uuid.uuid4().hex[:12]
    await connection.execute(f"create role {name} login password 'secret'")
    return name


async def drop_role(connection: asyncpg.Connection, role: str) -> None:
    await connection.execute(f"reassign owned by {role} to current_user")
    await connection.execute(f"drop owned by {role}")
    await connection.execute(f"drop role {role}")


def as_role(settings: Settings, role: str) -> Settings:
    """Return the settings with another role's DSN."""
    parts = urlsplit(settings.postgres_dsn.get_secret_value())
    where = f"{role}:secret@{parts.hostname}:{parts.port}"
    return settings.model_copy(update={"postgres_dsn": SecretStr(urlunsplit(parts._replace(netloc=where)))})


async def owned_by(settings: Settings, admin: asyncpg.Connection, role: str) -> Settings:
    """Drop the schemas, let the role create them, and return settings with its DSN."""
    own = as_role(settings, role)
    await admin.execute(f"grant create on database {await admin.fetchval('select current_database()')} to {role}")
    await admin.execute(f"drop schema {', '.join(SCHEMAS)} cascade")
    await asyncio.to_thread(migrate, own.postgres_dsn.get_secret_value())
    return own


def during_the_rebuild(monkeypatch: pytest.MonkeyPatch, what: Callable[[], Awaitable[object]]) -> None:
    """Do something once, between the start of the rebuild and the swap."""
    whole, done = rebuilding.RebuildSchema.apply_until, []

    async def apply_until(*args, **more):
        if not done:
            done.append(await what())
        return await whole(*args, **more)

    monkeypatch.setattr(rebuilding.RebuildSchema, "apply_until", apply_until)


@pytest.mark.parametrize(
    ("made", "dropped", "named"),
    [
        (
            "create materialized view mine.w as select run_id from everyrun.results",
            "drop materialized view mine.w",
            "materialized view mine.w",
        ),
        (
            "create view mine.w as select r from everyrun.results r",
            "drop view mine.w",
            "mine.w",
        ),
        (
            "create trigger t before insert on everyrun.results for each row execute function mine.f()",
            "drop trigger t on everyrun.results",
            "trigger t",
        ),
        ("create policy p on everyrun.results using (true)", "drop policy p on everyrun.results", "policy p"),
        (
            "alter table everyrun.results enable row level security",
            "alter table everyrun.results disable row level security",
            "row security",
        ),
        ("create publication p for table everyrun.results", "drop publication p", "in publication p"),
        ("create publication p for tables in schema everyrun", "drop publication p", "in publication p"),
        ("create index own on everyrun.results (position)", "drop index everyrun.own", "everyrun.own"),
        ("alter table everyrun.results add own int", "alter table everyrun.results drop own", "column own"),
    ],
)
async def test_a_dependent_object_created_during_the_rebuild_stops_the_swap(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, made: str, dropped: str, named: str
) -> None:
    connection = await connect(settings)
    await connection.execute("create schema mine")
    await connection.execute("create function mine.f() returns trigger language plpgsql as 'begin return new; end'")
    before = await connection.fetchval("select 'everyrun.results'::regclass::oid")
    during_the_rebuild(monkeypatch, lambda: connection.execute(made))
    with pytest.raises(RebuildError, match=named):
        await rebuild_and_swap(settings, quiet)
    assert await connection.fetchval("select 'everyrun.results'::regclass::oid") == before
    # The next run finds the object before it rebuilds anything.
    monkeypatch.setattr(rebuilding.RebuildSchema, "apply_until", None)
    with pytest.raises(RebuildError, match=named):
        await rebuild_and_swap(settings, quiet)
    monkeypatch.undo()
    await connection.execute(dropped)
    assert (await rebuild_and_swap(settings, quiet)).left_over is None
    await connection.close()


async def test_views_of_users_survive_a_swap(
    settings: Settings, service: Callable[..., ServiceProcess], tmp_path: Path
) -> None:
    """Each keeps its owner, rights, options and comments, and reads the new tables; so does a view on a view."""
    await write(settings, 1)
    processor = await service("processor", EVERYRUN_DATA_DIR=tmp_path).ready()
    await everything_applied(settings)
    processor.terminate()
    connection = await connect(settings)
    role, reader = await a_role(connection), await a_role(connection)
    await connection.execute(
        f"""
        create schema "My Views";
        grant usage on schema everyrun, "My Views" to {role}, {reader};
        grant select on everyrun.results, everyrun.flat_results to {role};
        create view "My Views"."first ""o" (id, state) with (security_barrier = true, check_option = local)
            as select input_id, status from everyrun.results where status <> 'it''s %I';
        alter view "My Views"."first ""o" owner to {role};
        comment on view "My Views"."first ""o" is 'a comment';
        comment on column "My Views"."first ""o".state is 'of a column';
        grant select (id) on "My Views"."first ""o" to {reader};
        create view "My Views".second as select state, count(*) as inputs from "My Views"."first ""o" group by 1;
        create materialized view "My Views".third as select * from "My Views".second;
        create view everyrun.inside as
            select workflow_id, count(*) as inputs from everyrun.flat_results group by 1;
        grant select on everyrun.inside to {reader};
        create view "My Views".outside as select * from everyrun.inside;
        """
    )
    names = ['"My Views"."first ""o"', '"My Views".second', "everyrun.inside", '"My Views".outside']

    async def described() -> list[Any]:
        about = [
            await connection.fetchrow(
                "select c.oid, c.relowner::regrole::text, c.relacl::text, c.reloptions, obj_description(c.oid),"
                " pg_get_viewdef(c.oid), array(select (a.attname, a.attacl, col_description(c.oid, a.attnum))::text"
                " from pg_attribute a where a.attrelid = c.oid order by a.attnum)"
                " from pg_class c where c.oid = $1::text::regclass",
                name,
            )
            for name in names
        ]
        return [*about, *[await connection.fetch(f"select * from {name} order by 1") for name in names]]

    before, table = await described(), await connection.fetchval("select 'everyrun.results'::regclass::oid")
    assert before[len(names)]
    for _ in range(2):
        assert (await rebuild_and_swap(settings, quiet)).left_over is None
        assert await described() == before
    assert await connection.fetchval("select 'everyrun.results'::regclass::oid") != table
    # They read the new tables, and not a copy.
    await connection.execute("update everyrun.results set status = 'CANCELLED'")
    assert {row["state"] for row in await connection.fetch('select * from "My Views".second')} == {"CANCELLED"}
    await connection.execute('drop schema "My Views" cascade; drop view everyrun.inside')
    for name in (role, reader):
        await drop_role(connection, name)
    await connection.close()


async def test_a_view_that_does_not_fit_the_new_tables_stops_the_swap_at_its_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = await connect(settings)
    await connection.execute("alter table everyrun.applied_offsets alter column partitions type bigint")
    await connection.execute("create view public.w as select partitions from everyrun.applied_offsets")
    monkeypatch.setattr(rebuilding.RebuildSchema, "apply_until", None)
    with pytest.raises(RebuildError, match=r"the view public\.w reads .* and does not fit .* Drop it before"):
        await rebuild_and_swap(settings, quiet)
    assert await connection.fetch("select * from public.w") == []
    assert await connection.fetchval("select to_regnamespace('everyrun_before')") is None
    await connection.close()


async def test_a_view_that_the_role_may_not_replace_is_named_with_the_grant(settings: Settings) -> None:
    admin = await connect(settings)
    role, other = await a_role(admin), await a_role(admin)
    own = await owned_by(settings, admin, role)
    await admin.execute(f"grant pg_read_all_stats to {role}")
    await admin.execute(f"create schema mine; grant usage on schema everyrun to {other}")
    await admin.execute(f"grant select on everyrun.results to {other}")
    await admin.execute("create view mine.w as select status from everyrun.results")
    await admin.execute(f"alter view mine.w owner to {other}")
    with pytest.raises(RebuildError, match=f"the view mine.w .* grant {other} to"):
        await rebuild_and_swap(own, quiet)
    await admin.execute(f"grant {other} to {role}; grant create, usage on schema mine to {role}, {other}")
    assert (await rebuild_and_swap(own, quiet)).left_over is None
    assert await admin.fetchval("select relowner::regrole::text from pg_class where oid = 'mine.w'::regclass") == other
    for name in (other, role):
        await drop_role(admin, name)
    await admin.close()


async def test_a_view_that_is_read_all_the_time_delays_the_swap_and_does_not_stop_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_views, "_LOCKED_WITHIN", 0.1)
    connection, reader = await connect(settings), await connect(settings)
    await connection.execute("create view public.w as select status from everyrun.results")
    whole, seen = swap.replace_views, []

    async def replace(*given) -> None:
        """Begin to read the view when the swap wants to replace it for the first time."""
        if not seen:
            await reader.execute("begin; lock table public.w in access share mode")
        try:
            await whole(*given)
        except user_views.ViewLockedError as error:
            seen.append(str(error))
            await reader.execute("commit")
            raise

    monkeypatch.setattr(swap, "replace_views", replace)
    assert (await rebuild_and_swap(settings, quiet)).left_over is None
    assert seen == ["a session holds a lock of the view public.w"]
    assert await connection.fetch("select * from public.w") == []
    await connection.close()
    await reader.close()


async def test_old_tables_with_a_dependent_object_stay_and_the_result_says_why(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = await connect(settings)
    await connection.execute("create schema mine")
    whole = swap._drop_old

    async def late(*args) -> str:
        """Create a view whose author had looked up the table's name before the swap."""
        await connection.execute("create view mine.v as select run_id from everyrun_before.results")
        return await whole(*args)

    monkeypatch.setattr(swap, "_drop_old", late)
    done = await rebuild_and_swap(settings, quiet)
    assert done.left_over == "everyrun_before"
    assert "mine.v" in done.reason
    assert await connection.fetch("select * from mine.v") == []
    monkeypatch.undo()
    with pytest.raises(RebuildError, match=r"mine\.v"):
        await rebuild_and_swap(settings, quiet)
    await connection.execute("drop view mine.v")
    assert (await rebuild_and_swap(settings, quiet)).left_over is None
    await connection.close()


async def test_a_schema_everyrun_before_of_others_is_not_dropped(settings: Settings) -> None:
    connection = await connect(settings)
    await connection.execute("create schema everyrun_before")
    await connection.execute("create table everyrun_before.mine ()")
    with pytest.raises(RebuildError, match="everyrun_before"):
        await rebuild_and_swap(settings, quiet)
    assert await connection.fetchval("select to_regclass('everyrun_before.mine') is not null")
    await connection.close()


async def test_a_swap_keeps_grants_also_on_single_columns(settings: Settings) -> None:
    connection = await connect(settings)
    role = await a_role(connection)
    await connection.execute(f"grant usage on schema everyrun to {role} with grant option")
    await connection.execute(f"grant select on everyrun.report to {role}")
    await connection.execute(f"grant select (run_id, status), update (status) on everyrun.results to {role}")
    rights = (
        "select has_schema_privilege($1, 'everyrun', 'usage with grant option'),"
        " has_table_privilege($1, 'everyrun.report', 'select'), has_table_privilege($1, 'everyrun.results', 'select'),"
        " has_column_privilege($1, 'everyrun.results', 'run_id', 'select'),"
        " has_column_privilege($1, 'everyrun.results', 'run_id', 'update'),"
        " has_column_privilege($1, 'everyrun.results', 'status', 'update')"
    )
    before = await connection.fetchrow(rights, role)
    assert tuple(before) == (True, True, False, True, False, True)
    await rebuild_and_swap(settings, quiet)
    assert await connection.fetchrow(rights, role) == before
    await drop_role(connection, role)
    await connection.close()


async def test_a_session_that_is_hidden_prevents_the_swap(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap, "_SHORT_WITHIN", 0.2)
    monkeypatch.setattr(swap, "_TRIES", 2)
    reader = await connect(settings)
    role = await a_role(reader)
    own = await owned_by(settings, reader, role)
    with pytest.raises(RebuildError, match=f"grant pg_read_all_stats to {role}"):
        await rebuild_and_swap(own, quiet)
    # If the role may see the session, the swap waits for its transaction.
    await reader.execute(f"grant pg_read_all_stats to {role}")
    async with reader.transaction(isolation="repeatable_read"):
        await reader.fetch("select * from everyrun.results")
        with pytest.raises(RebuildError, match="still reads the tables from before the swap"):
            await rebuild_and_swap(own, quiet)
    assert (await rebuild_and_swap(own, quiet)).left_over is None
    await drop_role(reader, role)
    await reader.close()


async def test_a_hidden_session_that_begins_during_the_rebuild_stops_the_swap(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = await connect(settings)
    role, other = await a_role(admin), await a_role(admin)
    own = await owned_by(settings, admin, role)
    await admin.execute(f"grant usage on schema everyrun to {other}; grant select on everyrun.results to {other}")
    before = await admin.fetchval("select 'everyrun.results'::regclass::oid")
    await admin.close()
    sessions: list[asyncpg.Connection] = []

    async def log_in() -> None:
        sessions.append(await connect(as_role(settings, other)))

    during_the_rebuild(monkeypatch, log_in)
    with pytest.raises(RebuildError, match=f"session of {other}"):
        await rebuild_and_swap(own, quiet)
    await sessions[0].close()
    admin = await connect(settings)
    assert await admin.fetchval("select 'everyrun.results'::regclass::oid") == before
    for name in (other, role):
        await drop_role(admin, name)
    await admin.close()


async def test_processors_refuse_topics_with_more_partitions_until_a_rebuild(
    settings: Settings, service: Callable[..., ServiceProcess], tmp_path: Path
) -> None:
    """With another number of partitions, old and new records of a chunk are in different partitions."""
    await write(settings, 1, 2)
    processor = await service("processor", EVERYRUN_DATA_DIR=tmp_path).ready()
    await everything_applied(settings)
    processor.terminate()
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    await admin.start()
    await admin.create_partitions({settings.topic(name): NewPartitions(16) for name in ("batches", "runs")})
    await admin.close()
    await eventually(lambda: partitions_are(settings, 16), "the topics have grown")
    refusing = service("processor", EVERYRUN_DATA_DIR=tmp_path)

    async def refuses() -> bool:
        try:
            async with httpx.AsyncClient() as http:
                answer = (await http.get(refusing.url + "/readyz")).text
        except httpx.TransportError:
            return False
        return "come from topics with 8 partitions, but runs now has 16" in answer and "rebuild --swap" in answer

    await eventually(refuses, "readyz says what is wrong and what to do", 60)
    before = await contents(settings, "everyrun")
    await write(settings, 1, 3)
    await rebuild_and_swap(settings, quiet)
    await refusing.ready()
    await everything_applied(settings)
    after = await contents(settings, "everyrun")
    for table in TABLES:
        assert set(before[table]) <= set(after[table]), table
    await rebuilt(settings)
    beside = await contents(settings, DEFAULT_SCHEMA)
    for table in TABLES:
        assert after[table] == beside[table], table


async def partitions_are(settings: Settings, count: int) -> bool:
    return {
        topic.partitions for name, topic in (await topics.live(settings)).items() if name in ("batches", "runs")
    } == {count}
