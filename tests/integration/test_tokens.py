"""Tokens are created, used, refused and revoked by ``everyrun token`` and the services, with a real database."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import asyncpg
import httpx
import pytest

from everyrun.http import api, scope
from everyrun.log import topics
from everyrun.log.producer import Producer
from everyrun.log.reading import end_offsets
from everyrun.projection import tables
from everyrun.projection.feed import Feed
from everyrun.settings import Settings
from everyrun.store import tokens
from everyrun.store.pool import open_pool
from everyrun.store.tokens import Tokens
from everyrun.submission.announcer import announce_tokens
from everyrun.submission.recovery.queue_recovery import catch_up
from tests.conftest import eventually
from tests.integration.conftest import read_topic
from tests.integration.test_cli_prepare import everyrun

pytestmark = pytest.mark.stack


async def level(settings: Settings) -> None:
    """Do what the submission service does when it starts, and after every restart of the database."""
    async with await open_pool(settings, name="test") as pool:
        await catch_up(settings, pool, await topics.cluster_id(settings))


async def test_token_works_for_its_scope_until_revoked_and_is_never_stored(service, settings: Settings) -> None:
    dsn = settings.postgres_dsn.get_secret_value()

    def token(*words: str):
        return everyrun("token", *words, "--data-dir", "/nonexistent", EVERYRUN_POSTGRES_DSN=dsn, COLUMNS="300")

    query = await service("query").ready()
    await level(settings)
    none = await asyncio.to_thread(token, "list")
    assert "There are no tokens" in none.stderr
    made = await asyncio.to_thread(token, "create", "an auditor", "--scope", "read", "--expires-in", "1h")
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    assert "an auditor" in made.stderr
    assert secret not in made.stderr
    other = (await asyncio.to_thread(token, "create", "uploads", "--scope", "submit")).stdout.strip()

    async def status(given: str) -> int:
        async with httpx.AsyncClient() as http:
            headers = {"authorization": f"Bearer {given}"}
            return (await http.get(query.url + "/v1/results", headers=headers)).status_code

    assert await status(secret) == 200
    assert await status(other) == 403
    assert await status(secret[:-1] + ("0" if secret[-1] != "0" else "1")) == 401

    listed = await asyncio.to_thread(token, "list")
    token_id = secret.rpartition("_")[0]
    assert token_id in listed.stdout
    assert secret not in listed.stdout
    connection = await asyncpg.connect(dsn)
    kept = str(await connection.fetch("select * from everyrun_queue.tokens"))
    await connection.close()
    assert token_id in kept
    assert secret.rpartition("_")[2] not in kept

    revoked = await asyncio.to_thread(token, "revoke", token_id)
    assert "was revoked already" in (await asyncio.to_thread(token, "revoke", token_id)).stderr
    assert revoked.returncode == 0
    assert "The log does not have the revocation yet" in revoked.stderr, "no submission service runs"

    async def refused() -> bool:
        return await status(secret) == 401

    await eventually(refused, "the revoked token is refused")
    assert await status(other) == 403
    assert "revoked, not in the log yet" in (await asyncio.to_thread(token, "list")).stdout
    assert (await asyncio.to_thread(token, "revoke", "ert_none")).returncode == 4


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("create", "x", "--scope", "admin"), "submit, read, operate"),
        (("create", "x"), "--scope"),
        (("create", "x", "--scope", "read", "--expires-in", "soon"), "90d"),
    ],
)
def test_wrong_token_command_explains_the_usage(words: tuple[str, ...], reason: str) -> None:
    refused = everyrun("token", *words, EVERYRUN_POSTGRES_DSN="postgresql://nobody@127.0.0.1:1/none", COLUMNS="300")
    assert refused.returncode == 2
    assert reason in refused.stderr


async def test_token_revoked_after_a_backup_stays_revoked_after_restore(settings: Settings) -> None:
    async with await open_pool(settings, name="test") as pool, Producer(settings) as producer:
        await level(settings)
        async with pool.acquire() as connection:
            token = await tokens.create(connection, "leaked", ["operate"], None, "ann")
            other = await tokens.create(connection, "kept", ["read"], None, "ann")
        await announce_tokens(pool, producer)
        backup = await pool.fetch("select * from everyrun_queue.tokens")
        positions = await pool.fetch("select * from everyrun_queue.log_position")
        assert await Tokens(pool, "").caller(token) is not None

        async with pool.acquire() as connection:
            revoked = await tokens.revoke(connection, token, "ben", "it was in a repository")
            assert revoked == tokens.Revoked("leaked", False)
            assert not await tokens.revocation_is_logged(connection, token)
            assert await Tokens(pool, "").caller(token) is None, "at once, whether Kafka is there or not"
            await announce_tokens(pool, producer)
            assert await tokens.revocation_is_logged(connection, token)

        # The database is restored: it has the tables of the backup, and is another incarnation.
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(
                "truncate everyrun_queue.chunks, everyrun_queue.tokens, everyrun_queue.log_position"
            )
            await connection.copy_records_to_table("tokens", schema_name="everyrun_queue", records=backup)
            await connection.copy_records_to_table("log_position", schema_name="everyrun_queue", records=positions)
        for given in (token, other):
            with pytest.raises(tokens.RevocationsUnknownError):
                await Tokens(pool, "").caller(given)
        await level(settings)
        assert await Tokens(pool, "").caller(token) is None
        assert await Tokens(pool, "").caller(other) is not None
        row = await pool.fetchrow("select * from everyrun_queue.tokens where name = 'leaked'")
        assert (row["revoked_by"], row["revoked_reason"]) == ("ben", "it was in a repository")
        await announce_tokens(pool, producer)
        said = [event for event, _ in await read_topic(settings, "batches") if event["type"].startswith("token-")]
        assert sorted(event["type"] for event in said) == ["token-created", "token-created", "token-revoked"]
        assert not any(token.rpartition("_")[2] in str(event) or "hash" in event for event in said)


async def test_every_api_answers_503_until_revocations_are_read(settings: Settings) -> None:
    async with await open_pool(settings, name="test") as pool:
        async with pool.acquire() as connection:
            token = await tokens.create(connection, "reader", ["read"], None, "ann")
        app = api("t", "", settings, pool)

        @app.get("/", dependencies=[scope("read")])
        async def nothing() -> None: ...

        headers = {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t", headers=headers) as http:
            before = await http.get("/")
            await level(settings)
            after = [(await http.get("/")).status_code]

            async def accepted() -> bool:
                after.append((await http.get("/")).status_code)
                return after[-1] == 200

            await eventually(accepted, "the token is accepted")
    assert (before.status_code, before.json()["code"]) == (503, "UNAVAILABLE")


async def test_token_events_become_decisions_in_the_tables(settings: Settings) -> None:
    dsn = settings.postgres_dsn.get_secret_value()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(await open_pool(settings, name="test"))
        producer = await stack.enter_async_context(Producer(settings))
        async with pool.acquire() as connection:
            token = await tokens.create(connection, "reader", ["read"], None, "ann")
            await tokens.revoke(connection, token, "ben", "")
        await announce_tokens(pool, producer)
        made = asyncpg.create_pool(
            dsn, min_size=1, init=tables.setup_connection, server_settings={"search_path": "everyrun"}
        )
        feed = Feed(settings, await stack.enter_async_context(made), await topics.identity(settings), producer)
        await feed.fill({place: (0, end) for place, end in (await end_offsets(settings, ("batches",))).items() if end})
        found = await pool.fetch("select kind, source, decided_by, reason from everyrun.decisions order by kind")
        quarantined = await pool.fetchval("select count(*) from everyrun.quarantine")
    token_id = token.rpartition("_")[0]
    assert [tuple(row) for row in found] == [
        ("token-created", token_id, "ann", "a token for reader: read, until it is revoked"),
        ("token-revoked", token_id, "ben", "the token for reader"),
    ]
    assert quarantined == 0
