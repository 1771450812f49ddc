"""``everyrun token``: create, list and revoke tokens for the HTTP APIs.

The commands only write to the database, so they need Postgres but not Kafka. The submission service then publishes the
changes to the log.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.markup import escape
from rich.table import Table

from everyrun.cli import exits
from everyrun.cli.arguments import DataDir
from everyrun.cli.console import err, fail, folding, print_table

T = TypeVar("T")

token_app = typer.Typer(
    no_args_is_help=True,
    help="Create, list or revoke tokens for the HTTP APIs.\n\nExample: everyrun token list",
)

_LIFETIME = re.compile(r"([1-9]\d{0,4})([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def parse_expiry(text: str, now: datetime) -> datetime | None:
    """Return the time at which a token with the lifetime ``text`` expires, or None for ``never``.

    Raises typer.BadParameter if the text is no lifetime.
    """
    return None if text == "never" else now + parse_lifetime(text, "--expires-in", "never")


def parse_lifetime(text: str, option: str, otherwise: str = "") -> timedelta:
    """Return the time that ``text`` stands for, for example ``90d``, ``12h`` or ``30m``.

    Raises typer.BadParameter, which names the option, if the text is no time. ``otherwise`` is a word that the option
    accepts too.
    """
    match = _LIFETIME.fullmatch(text)
    if match is None:
        words = f", or {otherwise}" if otherwise else ""
        raise typer.BadParameter(
            f"{text!r} is not a lifetime: write a number with m, h or d, such as 90d{words}", param_hint=option
        )
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


#: Maximum number of seconds to wait until the submission service has published a revocation. It usually takes one or
#: two seconds.
_PUBLISHED_WITHIN = 10.0


def _user_at_host() -> str:
    """Return the user who runs the command, as user@host."""
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def _dsn(data_dir: Path) -> str:
    """Return the DSN of the database: EVERYRUN_POSTGRES_DSN, or else that of the stack that runs in the folder."""
    from everyrun.cli.chosen import settings_in
    from everyrun.settings import SettingsError

    try:
        return settings_in(data_dir)[0].need("postgres_dsn").postgres_dsn.get_secret_value()
    except SettingsError as error:
        fail(f"no stack runs in {data_dir} (start one with: everyrun up), and\n{error}", exits.NOT_FOUND)


def _with_database(data_dir: Path, work: Callable[[Any], Awaitable[T]]) -> T:
    """Call ``work`` with a database connection and return its result. On failure, print why and end the command."""
    import asyncio

    import asyncpg

    from everyrun.redact import describe
    from everyrun.settings import SettingsError
    from everyrun.store.pool import POSTGRES_AWAY
    from everyrun.store.session import connect

    dsn = _dsn(data_dir)

    async def run() -> T:
        connection = await connect(dsn, name="token", timeout=10)
        try:
            return await work(connection)
        finally:
            await connection.close()

    try:
        return asyncio.run(run())
    except asyncpg.UndefinedTableError:
        fail("the database has no table of tokens. To create it, run: everyrun migrate")
    except SettingsError as error:
        fail(str(error))
    except POSTGRES_AWAY as error:
        fail(f"Postgres is unavailable: {describe(error)}")


@token_app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the caller, stored with every decision that the caller makes.")],
    scope: Annotated[
        list[str],
        typer.Option(help="Permission: submit, read or operate; can be repeated."),
    ],
    expires_in: Annotated[str, typer.Option(help="Lifetime: 90d, 12h, 30m, or never.")] = "90d",
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Create a token and print it.

    Everyrun stores only a hash of the token, so it cannot show the token again.

    Example: everyrun token create nightly-upload --scope submit --scope read --expires-in 365d
    """
    from everyrun.store import tokens

    unknown = [name for name in scope if name not in tokens.SCOPES]
    if unknown:
        raise typer.BadParameter(
            f"unknown scope: {', '.join(unknown)}. Choose from: {', '.join(tokens.SCOPES)}", param_hint="--scope"
        )
    if not name.isprintable() or not 0 < len(name) <= 100:
        raise typer.BadParameter("a name has 1 to 100 printable characters", param_hint="NAME")
    expires_at = parse_expiry(expires_in, datetime.now(UTC))
    scopes: list[tokens.Scope] = [known for known in tokens.SCOPES if known in scope]
    token = _with_database(data_dir, lambda on: tokens.create(on, name, scopes, expires_at, _user_at_host()))
    until = f"until {expires_at:%Y-%m-%d %H:%M} UTC" if expires_at else "until it is revoked"
    err.print(f"Token for {escape(name)} ({', '.join(scopes)}), valid {until}. It cannot be shown again:")
    typer.echo(token)


@token_app.command(name="list")
def list_tokens(data_dir: DataDir = Path(".everyrun")) -> None:
    """List tokens, newest first.

    The list contains the names, scopes and states of the tokens, but not the tokens themselves.

    Example: everyrun token list
    """
    from everyrun.store import tokens

    rows = _with_database(data_dir, tokens.every)
    if not rows:
        err.print("There are no tokens. To create one, run: everyrun token create NAME --scope read")
        return
    table = Table("id", "name", folding("scopes"), "created", "expires", "state")
    now = datetime.now(UTC)
    for row in rows:
        times = (_minute(row["created_at"]), _minute(row["expires_at"]) if row["expires_at"] else "never")
        table.add_row(row["token_id"], escape(row["name"]), ", ".join(row["scopes"]), *times, _state(row, now))
    print_table(table)


def _minute(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M}"


def _state(row: Any, now: datetime) -> str:
    if row["revoked_at"] is not None:
        return "revoked" if row["revoked_announced_at"] is not None else "revoked, not in the log yet"
    return "expired" if row["expires_at"] is not None and row["expires_at"] <= now else "valid"


@token_app.command()
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the token (ert_...), from everyrun token list.")],
    reason: Annotated[str, typer.Option(help="Reason, stored with the revocation.")] = "",
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Revoke a token: the services refuse it within a few seconds.

    The submission service also publishes the revocation to the log, so that a database restored from an older backup
    refuses the token too. The command waits up to ten seconds for this, and warns you if the revocation is not
    published by then.

    Example: everyrun token revoke ert_0123456789ab
    """
    if len(reason) > 1000 or "\x00" in reason:
        raise typer.BadParameter("a reason has at most 1000 characters and no NUL", param_hint="--reason")

    from everyrun.store import tokens

    async def revoke_and_wait(connection: Any) -> tuple[tokens.Revoked | None, bool]:
        revoked = await tokens.revoke(connection, token_id, _user_at_host(), reason)
        return revoked, revoked is not None and await _published(connection, token_id)

    revoked, published = _with_database(data_dir, revoke_and_wait)
    if revoked is None:
        fail(f"there is no token with the id {token_id}. To list all, run: everyrun token list", exits.NOT_FOUND)
    if revoked.already:
        kept = " (its first reason is kept, the new one is not)" if reason else ""
        err.print(f"The token {escape(revoked.name)} was revoked already{kept}.")
    else:
        err.print(f"Revoked the token {escape(revoked.name)}. The services refuse it within a few seconds.")
    if not published:
        err.print(
            "[yellow]The log does not have the revocation yet, so a database restored from an older backup would "
            "accept the token. Check that the submission service and Kafka are running: the service publishes the "
            "revocation as soon as it can. To see the state, run: everyrun token list[/]",
            soft_wrap=True,
        )


async def _published(connection: Any, token_id: str) -> bool:
    import asyncio

    from everyrun.store import tokens

    deadline = time.monotonic() + _PUBLISHED_WITHIN
    while not (published := await tokens.revocation_is_logged(connection, token_id)) and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
    return published
