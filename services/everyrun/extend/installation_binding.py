"""Which Extend this queue and its log are of: the one of the first start, and no other after it."""

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


def vendor(base_url: str) -> str:
    """What stands for the Extend at this address: the address, or ``emulator`` for all on this machine.

    The emulator's port may be another after each start, and the real Extend is never on the loopback.
    """
    host = urlsplit(base_url).hostname or ""
    try:
        local = ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    return EMULATOR if local else base_url.rstrip("/")


def difference(kept: str, given: str) -> str | None:
    """What readyz says where ``given`` is not the Extend that is kept; None where it is."""
    if kept == given:
        return None
    return (
        f"this queue and its log are of the Extend {kept}, and EVERYRUN_EXTEND_BASE_URL now names {given}: nothing is "
        f"sent to it or asked of it. Name {kept} again (everyrun up without --extend is the emulator), or give {given} "
        "a database and topics of its own (with everyrun up: another --data-dir). Only where both are the same Extend, "
        f"at a new address: write {given} into everyrun_queue.installation.vendor"
    )


async def wait_until_same(settings: Settings, health: Health) -> None:
    """Return when the Extend of the settings is the one of this database, which the first start decides.

    Until then readyz says what is in the way, in its part ``extend``: another Extend, or Postgres that is away.
    """
    said = None
    while (found := await problem(settings)) is not None:
        health.not_ready(PART, found)
        if found != said:
            _log.error("waiting for the right Extend", problem=found)
            said = found
        await asyncio.sleep(_AGAIN)
    health.ready(PART)


async def problem(settings: Settings) -> str | None:
    """What is in the way: another Extend than the one that is kept, or Postgres that is away; None where nothing is."""
    given = vendor(settings.extend_base_url)
    try:
        connection = await connect(
            settings.postgres_dsn.get_secret_value(), name="vendor", timeout=10, command_timeout=10
        )
        try:
            await connection.execute(_sql["keep"], given)
            kept = await connection.fetchval(_sql["kept"])
        finally:
            await connection.close(timeout=5)
    except POSTGRES_AWAY as error:
        return describe(error)
    return difference(kept, given)
