"""Tokens give access to their scopes, and callers without one learn nothing."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
import pytest
import typer
from fastapi import Request
from pydantic import SecretStr, ValidationError

from everyrun import schemas
from everyrun.cli.token import parse_expiry
from everyrun.http import api, caller, scope
from everyrun.settings import Settings
from everyrun.store.tokens import FRESH_FOR, SCOPES, UNKNOWN_FOR, RevocationsUnknownError, Tokens, digest

BOOTSTRAP = "bootstrap-of-the-tests"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Database:
    """A fake pool with the live tokens. It counts how often they are read."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.reads = 0
        self.away = False
        #: True if revocations were read from the log in this incarnation of the database.
        self.level = True

    async def fetch(self, _statement: str) -> list[dict[str, Any]]:
        if self.away:
            raise asyncpg.CannotConnectNowError("away")
        self.reads += 1
        return [{**row, "caught_up": self.level} for row in self.rows or [{"token_id": None}]]

    def add(self, token: str, *scopes: str, expires_at: datetime | None = None) -> str:
        row = {"token_id": token.rpartition("_")[0], "name": token, "hash": digest(token), "scopes": scopes}
        self.rows = [*self.rows, {**row, "expires_at": expires_at}]
        return token


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def known(database: Database, clock: Clock) -> Tokens:
    return Tokens(database, BOOTSTRAP, clock)  # type: ignore[arg-type]


async def test_bootstrap_token_has_every_scope_and_needs_no_database(known, database) -> None:
    database.away = True
    found = await known.caller(BOOTSTRAP)
    assert found is not None
    assert found.scopes == set(SCOPES)


@pytest.mark.parametrize("token", ["", "x", "ert_a_", BOOTSTRAP[:-1], BOOTSTRAP + "x", "ert_a_other", "\udcff", "_"])
async def test_malformed_token_has_no_caller(known, database, token) -> None:
    database.add("ert_a_secret", "read")
    assert await known.caller(token) is None


async def test_empty_token_has_no_caller_without_a_bootstrap_token(database) -> None:
    assert await Tokens(database, "").caller("") is None  # type: ignore[arg-type]


async def test_revoked_token_stops_working_within_seconds_while_in_use(known, database, clock) -> None:
    token = database.add("ert_a_secret", "read")
    assert await known.caller(token)
    database.rows = []
    while clock.now < FRESH_FOR:
        clock.now += 0.1
        found = await known.caller(token)
    assert found is None
    assert database.reads == 2


async def test_new_token_works_at_once_and_guesses_cause_few_queries(known, database, clock) -> None:
    for n in range(1000):
        assert await known.caller(f"ert_{n}_guess") is None
    assert database.reads == 1
    token = database.add("ert_a_secret", "read")
    clock.now += UNKNOWN_FOR
    assert await known.caller(token)


async def test_expired_token_has_no_caller_without_a_query(known, database) -> None:
    late = database.add("ert_a_secret", "read", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    good = database.add("ert_b_secret", "read", expires_at=datetime.now(UTC) + timedelta(days=1))
    assert await known.caller(late) is None
    assert await known.caller(good)


def client(database: Database) -> httpx.AsyncClient:
    app = api("t", "", Settings(api_token=SecretStr(BOOTSTRAP)), database)  # type: ignore[arg-type]

    async def who(request: Request, number: int = 0) -> str:
        return caller(request)

    for name in SCOPES:
        app.get(f"/{name}", dependencies=[scope(name)])(who)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t")


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer wrong")],
        [("authorization", BOOTSTRAP)],
        [("authorization", f"Basic {BOOTSTRAP}")],
        [("authorization", f"Bearer {BOOTSTRAP}"), ("authorization", "Bearer wrong")],
        [("authorization", b"Bearer \xff\x00")],
        [("authorization", "Bearer ert_expired_secret")],
    ],
)
@pytest.mark.parametrize("path", ["/read", "/nothing", "/read?number=x", "/docs"])
async def test_caller_without_a_token_learns_nothing(database, headers, path) -> None:
    database.add("ert_expired_secret", "read", expires_at=NOW)
    async with client(database) as http:
        answer = await http.get(path, headers=headers)
    assert answer.status_code == 401
    assert answer.json() == {"code": "UNAUTHORIZED", "message": "Authorization: Bearer TOKEN is missing or wrong"}


@pytest.mark.parametrize("mine", SCOPES)
@pytest.mark.parametrize("wanted", SCOPES)
async def test_token_works_only_for_its_scopes_and_403_names_the_missing_one(database, mine, wanted) -> None:
    token = database.add(f"ert_{mine}_secret", mine)
    async with client(database) as http:
        answer = await http.get(f"/{wanted}?number=1", headers={"authorization": f"bearer {token}"})
        if mine == wanted:
            assert (answer.status_code, answer.json()) == (200, token)
        else:
            assert (answer.status_code, answer.json()["scope"]) == (403, wanted)
            assert wanted in answer.json()["message"]
            # The scope is checked before anything else in the request.
            assert (
                await http.get(f"/{wanted}?number=x", headers={"authorization": f"Bearer {token}"})
            ).status_code == 403


async def test_caller_gets_503_while_the_database_is_unavailable(database) -> None:
    database.away = True
    async with client(database) as http:
        answer = await http.get("/read", headers={"authorization": "Bearer ert_a_secret"})
        assert (await http.get("/read", headers={"authorization": f"Bearer {BOOTSTRAP}"})).status_code == 200
    assert answer.status_code == 503
    assert "retry-after" in answer.headers


async def test_token_gets_503_until_revocations_are_read(database, known, clock) -> None:
    token = database.add("ert_a_secret", "read")
    assert await known.caller(token)
    database.level = False
    clock.now += FRESH_FOR
    for given in (token, "ert_b_guess"):
        with pytest.raises(RevocationsUnknownError):
            await known.caller(given)
    assert await known.caller(BOOTSTRAP)
    async with client(database) as http:
        answer = await http.get("/read", headers={"authorization": f"Bearer {token}"})
        assert (await http.get("/read")).status_code == 401
    assert (answer.status_code, answer.json()["code"], "retry-after" in answer.headers) == (503, "UNAVAILABLE", True)
    database.level = True
    clock.now += UNKNOWN_FOR
    assert await known.caller(token)


def test_every_route_requires_exactly_one_scope() -> None:
    for name, document in schemas.openapis().items():
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if path in ("/healthz", "/readyz", "/metrics", "/webhooks/extend"):
                    continue
                (wanted,) = operation["security"]
                assert len(wanted["HTTPBearer"]) == 1, (name, method, path)
                if method != "get":
                    assert wanted["HTTPBearer"][0] in ("submit", "operate"), (name, method, path)


@pytest.mark.parametrize(
    ("text", "length"),
    [("90d", timedelta(days=90)), ("12h", timedelta(hours=12)), ("30m", timedelta(minutes=30)), ("never", None)],
)
def test_lifetime_of_a_token_is_parsed(text, length) -> None:
    assert parse_expiry(text, NOW) == (length and NOW + length)


@pytest.mark.parametrize("text", ["", "90", "d", "0d", "-1d", "1w", "1.5d", "999999d", "forever"])
def test_malformed_lifetime_is_refused(text) -> None:
    with pytest.raises(typer.BadParameter, match=re.escape(repr(text))):
        parse_expiry(text, NOW)


def test_short_bootstrap_token_is_refused() -> None:
    with pytest.raises(ValidationError, match="16 characters"):
        Settings(api_token=SecretStr("short"))
