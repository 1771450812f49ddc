"""Sessions ignore the limits of the role, and a pooler without sessions is refused."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from pydantic import SecretStr

from everyrun.doctor import ask_postgres, ask_progress, judge_stores
from everyrun.embedded.kafka import EmbeddedKafka
from everyrun.embedded.postgres import EmbeddedPostgres
from everyrun.projection import tables
from everyrun.replay.rebuild.rebuild_schema import hold_schema
from everyrun.settings import Settings
from everyrun.store.migrate import MigrationError, migrate
from everyrun.store.pool import SlowStatementError, open_pool
from everyrun.store.probe import Probe
from everyrun.store.session import LIMITS, PoolerError, connect
from everyrun.submission.intake import parse
from everyrun.submission.intake.accept import accept_submission
from tests.conftest import eventually
from tests.pgbouncer import needs_pgbouncer, pgbouncer, through

pytestmark = pytest.mark.stack


def settings_of(dsn: str) -> Settings:
    return Settings(postgres_dsn=SecretStr(dsn))


@pytest.fixture
async def hurried(database: str) -> AsyncIterator[str]:
    """Yield the dsn of a role that owns the schemas, with limits that are too short for nearly everything."""
    role = "hurried_" + uuid.uuid4().hex[:8]
    name = urlsplit(database).path[1:]
    admin = await asyncpg.connect(database)
    await admin.execute(f"create role {role} superuser login password 'hurried'")
    await admin.execute(f"alter role {role} set statement_timeout = '100ms'")
    await admin.execute(f"alter role {role} in database {name} set lock_timeout = '50ms'")
    await admin.execute(f"alter database {name} set idle_in_transaction_session_timeout = '100ms'")
    parts = urlsplit(database)
    yield urlunsplit(parts._replace(netloc=f"{role}:hurried@{parts.hostname}:{parts.port}"))
    await admin.execute(f"reassign owned by {role} to current_user")
    await admin.execute(f"drop owned by {role}")
    await admin.execute(f"alter role {role} in database {name} reset all")
    await admin.execute(f"drop role {role}")
    await admin.close()


async def body(number: int, pause: float = 0.0) -> AsyncIterator[bytes]:
    for first in range(0, number, 10):
        await asyncio.sleep(pause)
        yield b"".join(_line(first + n) for n in range(10))


def _line(number: int) -> bytes:
    return b'{"id":"i%d","file":{"url":"https://example.com/%d.pdf"}}\n' % (number, number)


async def accepted(pool: asyncpg.Pool, settings: Settings, given: AsyncIterator[bytes]) -> int:
    options: dict[str, Any] = {"workflow_id": "workflow_a", "workflow_version": None, "priority": 90}
    return (
        await accept_submission(pool, settings, parse.read_rows(parse.NDJSON, given), **options, idempotency_key=None)
    ).expected


async def test_limits_of_the_role_do_not_end_a_long_upload(hurried: str) -> None:
    settings = settings_of(hurried)
    async with await open_pool(settings, name="test") as pool:
        # Take longer than each limit, several times, over a connection that was returned to the pool.
        for _ in range(2):
            assert await accepted(pool, settings, body(30, pause=0.2)) == 30


async def test_sessions_have_no_limits_and_keep_their_settings(hurried: str) -> None:
    settings = settings_of(hurried)
    shown = "select " + ", ".join(f"current_setting('{name}', true) as {name}" for name in LIMITS)

    async def unlimited(connection: Any) -> bool:
        return all(value in (None, "0") for value in await connection.fetchrow(shown))

    own = {"search_path": tables.SCHEMA, "synchronous_commit": "off"}
    async with await open_pool(settings, name="test", max_size=1, own=own, setup=tables.setup_connection) as pool:
        for _ in range(3):
            async with pool.acquire() as connection:
                assert await unlimited(connection)
                assert await connection.fetchval("show synchronous_commit") == "off"
                await connection.fetch("select * from applied_offsets")
                # Settings that a user of the connection makes do not stay.
                await connection.execute("set search_path to pg_catalog; set statement_timeout to '1s'")
    single = await connect(hurried, name="test", own={"search_path": "everyrun"})
    assert await unlimited(single)
    await single.fetch("select * from applied_offsets")
    await single.close()
    async with hold_schema(settings, "some_schema") as place:
        assert await unlimited(place.connection)


async def test_limits_of_the_role_do_not_end_migrations(hurried: str) -> None:
    admin = await connect(hurried, name="test")
    await admin.execute("drop schema everyrun cascade")
    held = admin.transaction()
    await held.start()
    # Migrations wait for this lock longer than the role's lock_timeout and statement_timeout.
    await admin.execute("create schema everyrun")
    migrating = asyncio.create_task(asyncio.to_thread(migrate, hurried))
    waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"

    async def waited() -> bool:
        late = waits + " and clock_timestamp() - query_start > interval '300 ms'"
        return bool(await admin.fetchval("select pg_stat_clear_snapshot()") or await admin.fetchval(late))

    try:
        await eventually(lambda: migrating.done() or waited(), "the migration waits")
        assert not migrating.done(), migrating.exception()
    finally:
        await held.rollback()
    await migrating
    await admin.fetch("select * from everyrun.applied_offsets")
    await admin.close()


async def test_error_names_the_limit_that_ended_a_statement(database: str) -> None:
    async with await open_pool(settings_of(database), name="test") as pool, pool.acquire() as connection:
        await connection.execute("set statement_timeout to 50")
        with pytest.raises(SlowStatementError, match="because of statement_timeout"):
            await connection.fetch("select pg_sleep(5)")


async def test_doctor_warns_of_limits(hurried: str) -> None:
    facts, _ = await ask_postgres.ask_postgres(settings_of(hurried))
    assert facts.problem is None
    assert {(name, value, source) for name, value, source in facts.limits} == {
        ("statement_timeout", "100ms", "user"),
        ("lock_timeout", "50ms", "database user"),
        ("idle_in_transaction_session_timeout", "100ms", "database"),
    }
    findings = [f for f in judge_stores.judge_postgres(facts, {}) if f.check == judge_stores.LIMITS]
    assert [finding.level for finding in findings] == ["warning"] * 3
    assert any("alter role ROLE reset statement_timeout" in finding.remedy for finding in findings)
    assert facts.write_problem is None


async def test_doctor_does_not_warn_without_limits(database: str) -> None:
    facts, _ = await ask_postgres.ask_postgres(settings_of(database))
    assert facts.problem is None
    assert facts.limits == []
    assert not facts.shared


@pytest.fixture(params=["transaction", "statement"])
def shared(
    request: pytest.FixtureRequest, servers: tuple[EmbeddedKafka, EmbeddedPostgres], database: str
) -> Iterator[str]:
    with pgbouncer(servers[1], request.param) as port:
        yield through(database, port)


@pytest.fixture
def pooled(servers: tuple[EmbeddedKafka, EmbeddedPostgres], database: str) -> Iterator[str]:
    with pgbouncer(servers[1], "session") as port:
        yield through(database, port)


async def answers(dsn: str) -> None:
    async def ask() -> bool:
        try:
            connection = await asyncpg.connect(dsn, timeout=2, statement_cache_size=0)
        except (OSError, asyncpg.PostgresError):
            return False
        connection.terminate()
        return True

    await eventually(ask, "PgBouncer answers")


@needs_pgbouncer
async def test_pgbouncer_without_sessions_is_refused(shared: str) -> None:
    await answers(shared)
    settings = settings_of(shared)
    with pytest.raises(PoolerError, match=r"EVERYRUN_POSTGRES_DSN.*pool_mode = session"):
        await open_pool(settings, name="test")
    with pytest.raises(PoolerError):
        await connect(shared, name="test")
    assert "transaction or statement mode" in str(await Probe(settings, name="test", writes=True).problem())
    facts, _ = await ask_postgres.ask_postgres(settings)
    assert facts.shared
    first, *_ = judge_stores.judge_postgres(facts, {})
    assert first.level == "failed"
    assert "pool_mode = session" in first.remedy


@needs_pgbouncer
@pytest.mark.parametrize("service", ["submission", "query", "processor", "reconciler", "replay", "notifier"])
async def test_services_do_not_start_on_pgbouncer_without_sessions(
    service: str, servers: tuple[EmbeddedKafka, EmbeddedPostgres], settings: Settings
) -> None:
    with pgbouncer(servers[1], "transaction") as port:
        dsn = through(settings.postgres_dsn.get_secret_value(), port)
        await answers(dsn)
        env = {
            **os.environ,
            "EVERYRUN_POSTGRES_DSN": dsn,
            "EVERYRUN_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
            "EVERYRUN_TOPIC_PREFIX": settings.topic_prefix,
            "EXTEND_API_KEY": "sk_0123456789abcdef",
            "EXTEND_BASE_URL": "http://127.0.0.1:1",
            "EVERYRUN_API_TOKEN": "ert_0123456789abcdef",
            **{f"EVERYRUN_{name}_LISTEN": "127.0.0.1:0" for name in ("SUBMISSION", "QUERY", "PROCESSOR")},
            **{f"EVERYRUN_{name}_LISTEN": "127.0.0.1:0" for name in ("RECONCILER", "REPLAY", "NOTIFIER")},
        }
        command = [sys.executable, "-m", f"everyrun.{service}"]
        ended = await asyncio.to_thread(
            subprocess.run, command, env=env, capture_output=True, text=True, check=False, timeout=120
        )
    assert ended.returncode == 2, ended.stderr
    assert "pool_mode = session" in ended.stderr
    assert "Traceback" not in ended.stderr


@needs_pgbouncer
async def test_pgbouncer_in_session_mode_works(pooled: str, settings: Settings) -> None:
    await answers(pooled)
    behind = settings_of(pooled)
    async with await open_pool(behind, name="test") as pool:
        assert await accepted(pool, behind, body(30)) == 30
        async with pool.acquire() as one, pool.acquire() as other:
            assert await one.fetchval("select pg_try_advisory_lock(7)")
            assert not await other.fetchval("select pg_try_advisory_lock(7)")
    async with await open_pool(
        behind, name="test", max_size=1, own={"search_path": tables.SCHEMA}, setup=tables.setup_connection
    ) as pool:
        for _ in range(3):
            assert await pool.fetch("select * from applied_offsets") == []
    facts, workflows = await ask_postgres.ask_postgres(behind)
    assert (facts.problem, facts.shared, workflows) == (None, False, ["workflow_a"])
    following = await ask_progress.ask_progress(settings.model_copy(update={"postgres_dsn": behind.postgres_dsn}))
    assert following.problem is None
    async with hold_schema(behind, "some_schema"):
        pass


@needs_pgbouncer
async def test_migrations_through_pgbouncer_explain_what_to_do(pooled: str) -> None:
    await answers(pooled)
    with pytest.raises(MigrationError, match="name it, not PgBouncer"):
        await asyncio.to_thread(migrate, pooled)
