"""``everyrun token``: who may call the APIs, and for what.

It works on the database itself, so it needs its dsn, and no Kafka. The submission service tells the log.
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

token_app = typer.Typer(no_args_is_help=True, help="Create, list or revoke tokens for the HTTP APIs.")

_LENGTH = re.compile(r"([1-9]\d{0,4})([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def expiry(text: str, now: datetime) -> datetime | None:
    """When a token made now ends: ``90d``, ``12h``, ``30m``, or ``never`` (None). Raises typer.BadParameter."""
    if text == "never":
        return None
    found = _LENGTH.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"--expires-in is a number with m, h or d, such as 90d, or never; not {text!r}")
    return now + timedelta(**{_UNITS[found[2]]: int(found[1])})


#: The submission service publishes a revocation within a second or two; so long is waited for it, in seconds.
_PUBLISHED_WITHIN = 10.0


def _who() -> str:
    """Return who runs the command, as user@host."""
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def _dsn(data_dir: Path) -> str:
    """Return where the database is: what EVERYRUN_POSTGRES_DSN says, or that of the running stack of the folder."""
    from everyrun.cli.chosen import settings_in
    from everyrun.settings import SettingsError

    try:
        return settings_in(data_dir)[0].need("postgres_dsn").postgres_dsn.get_secret_value()
    except SettingsError as error:
        fail(f"no stack runs in {data_dir}, and the settings name no database:\n{error}", exits.NOT_FOUND)


def _on_database(data_dir: Path, ask: Callable[[Any], Awaitable[T]]) -> T:
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
            return await ask(connection)
        finally:
            await connection.close()

    try:
        return asyncio.run(run())
    except asyncpg.UndefinedTableError:
        fail("the database has no table of tokens; make it with: everyrun migrate")
    except SettingsError as error:
        fail(str(error))
    except POSTGRES_AWAY as error:
        fail(f"the database does not answer: {describe(error)}")


@token_app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who it is for; shown in the list and in records of decisions.")],
    scope: Annotated[
        list[str],
        typer.Option(help="What it is for: submit, read or operate; give the option once for each."),
    ],
    expires_in: Annotated[str, typer.Option(help="How long it is good: 90d, 12h, 30m, or never.")] = "90d",
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Make a token and print it, this once: only a hash of it is kept.

    Example: everyrun token create nightly-upload --scope submit --scope read --expires-in 365d
    """
    from everyrun.store import tokens

    wrong = [given for given in scope if given not in tokens.SCOPES]
    if wrong:
        raise typer.BadParameter(f"--scope is one of {', '.join(tokens.SCOPES)}; not {', '.join(wrong)}")
    if not name.isprintable() or not 0 < len(name) <= 100:
        raise typer.BadParameter("the name has 1 to 100 printable characters")
    expires_at = expiry(expires_in, datetime.now(UTC))
    wanted: list[tokens.Scope] = [known for known in tokens.SCOPES if known in scope]
    made = _on_database(data_dir, lambda connection: tokens.create(connection, name, wanted, expires_at, _who()))
    until = f"until {expires_at:%Y-%m-%d %H:%M} UTC" if expires_at else "until it is revoked"
    err.print(f"A token for {escape(name)}, to {' and '.join(wanted)}, good {until}. It is not shown again:")
    typer.echo(made)


@token_app.command(name="list")
def list_tokens(data_dir: DataDir = Path(".everyrun")) -> None:
    """List the tokens, newest first; the tokens themselves are kept nowhere.

    Example: everyrun token list
    """
    from everyrun.store import tokens

    found = _on_database(data_dir, tokens.every)
    if not found:
        err.print("There are no tokens; make one with: everyrun token create NAME --scope read")
        return
    table = Table("id", "name", folding("scopes"), "created", "expires", "state")
    now = datetime.now(UTC)
    for row in found:
        times = (_day(row["created_at"]), _day(row["expires_at"]) if row["expires_at"] else "never")
        table.add_row(row["token_id"], escape(row["name"]), ", ".join(row["scopes"]), *times, _state(row, now))
    print_table(table)


def _day(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"


def _state(row: Any, now: datetime) -> str:
    if row["revoked_at"] is not None:
        return "revoked" if row["revoked_announced_at"] is not None else "revoked, not in the log yet"
    return "expired" if row["expires_at"] is not None and row["expires_at"] <= now else "good"


@token_app.command()
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The token's id (ert_...), as the list shows it.")],
    reason: Annotated[str, typer.Option(help="Why; kept with the decision.")] = "",
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Revoke a token: the services refuse it within a few seconds.

    The revocation is also published to the log, so that a database restored from an older backup refuses the token
    too. The command waits for that, and says if it has not happened yet.

    Example: everyrun token revoke ert_0123456789ab
    """
    if len(reason) > 1000 or "\x00" in reason:
        raise typer.BadParameter("--reason has at most 1000 characters, and no NUL")

    from everyrun.store import tokens

    async def revoke_and_wait(connection: Any) -> tuple[tokens.Revoked | None, bool]:
        found = await tokens.revoke(connection, token_id, _who(), reason)
        return found, found is not None and await _published(connection, token_id)

    found, published = _on_database(data_dir, revoke_and_wait)
    if found is None:
        fail("there is no token of that id; see: everyrun token list", exits.NOT_FOUND)
    if found.before:
        kept = " (the first reason stays, the new one is not kept)" if reason else ""
        err.print(f"{escape(found.name)} was revoked already{kept}.")
    else:
        err.print(f"Revoked: {escape(found.name)}. The services refuse it within a few seconds.")
    if not published:
        err.print(
            "[yellow]The log does not have the revocation yet: is the submission service running, and Kafka? Until it "
            "has, a database restored from an older backup would accept the token again. The submission service "
            "publishes it as soon as it can; see the state in: everyrun token list[/]",
            soft_wrap=True,
        )


async def _published(connection: Any, token_id: str) -> bool:
    import asyncio

    from everyrun.store import tokens

    deadline = time.monotonic() + _PUBLISHED_WITHIN
    while not (there := await tokens.is_durable(connection, token_id)) and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
    return there
