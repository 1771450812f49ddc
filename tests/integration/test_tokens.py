"""``everyrun token`` and the services: made, used, refused, revoked, against a real database."""

from __future__ import annotations

import asyncio

import asyncpg
import httpx
import pytest

from everyrun.settings import Settings
from tests.conftest import eventually
from tests.integration.test_cli_prepare import everyrun

pytestmark = pytest.mark.stack


async def test_a_token_works_for_its_scope_until_it_is_revoked_and_is_kept_nowhere(service, settings: Settings) -> None:
    dsn = settings.postgres_dsn.get_secret_value()

    def token(*words: str):
        return everyrun("token", *words, "--data-dir", "/nonexistent", EVERYRUN_POSTGRES_DSN=dsn)

    query = await service("query").ready()
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

    assert (await asyncio.to_thread(token, "revoke", token_id)).returncode == 0

    async def refused() -> bool:
        return await status(secret) == 401

    await eventually(refused, "the revoked token is refused")
    assert await status(other) == 403
    assert "revoked" in (await asyncio.to_thread(token, "list")).stdout
    assert (await asyncio.to_thread(token, "revoke", "ert_none")).returncode == 4


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("create", "x", "--scope", "admin"), "submit, read, operate"),
        (("create", "x"), "--scope"),
        (("create", "x", "--scope", "read", "--expires-in", "soon"), "90d"),
    ],
)
def test_a_wrong_call_says_what_is_right(words: tuple[str, ...], reason: str) -> None:
    refused = everyrun("token", *words, EVERYRUN_POSTGRES_DSN="postgresql://nobody@127.0.0.1:1/none", COLUMNS="300")
    assert refused.returncode == 2
    assert reason in refused.stderr
