"""Keep the views that users have made on the live tables when rebuilt tables replace these (:mod:`swap`).

Each view is replaced in place, within the transaction of the swap: its definition is given again, and its names now
lead to the new tables. So its owner, rights, comments, triggers, and the views that read it stay.
"""

from __future__ import annotations

import asyncpg
from msgspec import Struct

from everyrun.replay.errors import RebuildError
from everyrun.store.sql import beside

_sql = beside(__file__, "user_views.sql")

#: Seconds to wait for a session that reads a view, before the view cannot be replaced.
_LOCKED_WITHIN = 5.0


class UserView(Struct, frozen=True):
    """A view of a user. ``definition`` is the statement that replaces it.

    If it is in the live schema, it is renamed with this schema, and the statement ``move`` moves it back.
    """

    name: str
    move: str | None
    definition: str
    owner: str


class ViewLockedError(Exception):
    """A session holds a lock of a view, or waits for one, so that the view cannot be replaced now."""


async def user_views(connection: asyncpg.Connection, live: str, rebuilt: str, before: str) -> list[UserView]:
    """Return the views that read the live schema. Call it in the transaction of the swap, before the renaming.

    ``before`` is the name that the live schema gets, and ``rebuilt`` the schema that becomes the live one. From then
    on, the search path of the transaction is empty.
    """
    await connection.fetchval(_sql["names_are_complete"])
    return [UserView(**row) for row in await connection.fetch(_sql["user_views"], live, rebuilt, before)]


async def replace_views(connection: asyncpg.Connection, views: list[UserView]) -> None:
    """Let the views read the new tables. Call it in the transaction of the swap, after the renaming.

    Raises RebuildError, which names the view, if it cannot be kept: the new tables lack a column that it reads, or have
    it with another type, or this database role may not replace the view. Raises ViewLockedError if a session uses a
    view for too long.
    """
    await connection.fetchval(_sql["wait_for_locks"], str(int(_LOCKED_WITHIN * 1000)))
    for view in views:
        if view.move is not None:
            await _done(connection, view, view.move)
    for view in views:
        await _done(connection, view, view.definition)


async def check_views(connection: asyncpg.Connection, live: str, rebuilt: str, before: str) -> None:
    """Raise RebuildError if a view could not be kept. The swap is tried with the empty tables, and rolled back."""
    trial = connection.transaction()
    await trial.start()
    try:
        views = await user_views(connection, live, rebuilt, before)
        if views:
            for names in ((live, before), (rebuilt, live)):
                await connection.execute(await connection.fetchval(_sql["renaming"], *names))
            await replace_views(connection, views)
    except ViewLockedError as error:
        raise RebuildError(f"{error}; try again later") from None
    finally:
        await trial.rollback()


async def _done(connection: asyncpg.Connection, view: UserView, statement: str) -> None:
    try:
        await connection.execute(statement)
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
        raise ViewLockedError(f"a session holds a lock of the view {view.name}") from None
    except asyncpg.InsufficientPrivilegeError as error:
        raise RebuildError(
            f"the view {view.name} reads the live tables, and this role may not replace it ({error}). Either drop it "
            f"before the swap and create it again after it, or let its owner permit it: grant {view.owner} to "
            "the role of EVERYRUN_POSTGRES_DSN"
        ) from None
    except asyncpg.PostgresError as error:
        raise RebuildError(
            f"the view {view.name} reads the live tables and does not fit the new ones ({error}). Drop it before the "
            "swap and create it again after it"
        ) from None
