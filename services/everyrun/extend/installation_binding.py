"""At the first start, bind a queue and its log to the Extend in the settings. Later, refuse any other Extend."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from urllib.parse import urlsplit

from everyrun import telemetry
from everyrun.health import Health
from everyrun.redact import describe
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY
from everyrun.store.session import connect
from everyrun.store.sql import beside

_log = telemetry.log(__name__)
_sql = beside(__file__, "installation_binding.sql")

EMULATOR = "emulator"
#: The name of this check in readyz.
PART = "extend"
#: Seconds until the next check.
_AGAIN = 1.0


def identity(base_url: str) -> str:
    """Return what identifies the Extend at an address: ``emulator`` if it is on this machine, otherwise the address.

    The real Extend is never on the loopback interface, and the emulator's port may change at each start.
    """
    host = urlsplit(base_url).hostname or ""
    try:
        local = ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    return EMULATOR if local else base_url.rstrip("/")


def difference(bound: str, given: str) -> str | None:
    """Return the problem if ``given`` is not the Extend that the queue is bound to, and None otherwise."""
    if bound == given:
        return None
    return (
        f"this queue and its log are bound to the Extend {bound}, and EVERYRUN_EXTEND_BASE_URL names {given}: nothing "
        f"is sent to {given}. Set it to {bound} again (everyrun up without --extend uses the emulator), or use another "
        f"database and other topics for {given} (with everyrun up: another --data-dir). If {given} is only a new "
        "address of the same Extend, write it to everyrun_queue.installation.vendor"
    )


async def wait_until_bound(settings: Settings, health: Health) -> None:
    """At the first start, bind this database to the Extend in the settings.

    At a later start, wait until the settings name the Extend that the database is bound to. Meanwhile, readyz reports
    the problem under ``extend``: either the database is bound to another Extend, or Postgres is unavailable.
    """
    logged = None
    while (found := await problem(settings)) is not None:
        health.not_ready(PART, found)
        if found != logged:
            _log.error("waiting for the right Extend", problem=found)
            logged = found
        await asyncio.sleep(_AGAIN)
    health.ready(PART)


async def problem(settings: Settings) -> str | None:
    """Bind the database if it is not bound yet. Return what is wrong, or None.

    Either the database is bound to another Extend, or Postgres is unavailable.
    """
    given = identity(settings.extend_base_url)
    try:
        connection = await connect(
            settings.postgres_dsn.get_secret_value(), name="vendor", timeout=10, command_timeout=10
        )
        try:
            await connection.execute(_sql["bind"], given)
            bound = await connection.fetchval(_sql["bound"])
        finally:
            await connection.close(timeout=5)
    except POSTGRES_AWAY as error:
        return describe(error)
    return difference(bound, given)
