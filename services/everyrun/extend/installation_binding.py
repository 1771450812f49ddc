"""Bind a queue and its log to the first Extend that they start with, and refuse any other."""

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
#: The part of readyz.
PART = "extend"
_AGAIN = 1.0


def identity(base_url: str) -> str:
    """Return the identity of the Extend at an address: the address, or ``emulator`` for any on this machine.

    The emulator's port may change at each start, and the real Extend is never on the loopback interface.
    """
    host = urlsplit(base_url).hostname or ""
    try:
        local = ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    return EMULATOR if local else base_url.rstrip("/")


def difference(bound: str, given: str) -> str | None:
    """Return the problem if ``given`` is not the Extend that the queue is bound to, or None if it is."""
    if bound == given:
        return None
    return (
        f"this queue and its log are bound to the Extend {bound}, and EVERYRUN_EXTEND_BASE_URL names {given}: nothing "
        f"is sent to {given}. Set it to {bound} again (everyrun up without --extend uses the emulator), or use another "
        f"database and other topics for {given} (with everyrun up: another --data-dir). If {given} is only a new "
        "address of the same Extend, write it to everyrun_queue.installation.vendor"
    )


async def wait_until_bound(settings: Settings, health: Health) -> None:
    """Bind this database to the Extend of the settings at the first start; later, wait until they agree.

    Until then, readyz reports the problem as its part ``extend``: another Extend, or Postgres is unavailable.
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
    """Bind the database if it is not bound yet. Return the problem (another Extend, or no Postgres), or None."""
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
