"""Run the commands that connect to Kafka and Postgres directly."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from everyrun.cli import exits
from everyrun.cli.console import fail
from everyrun.errors import EveryrunError

if TYPE_CHECKING:
    from everyrun.settings import Settings

T = TypeVar("T")


def settings_of(data_dir: Path, *needs: str) -> Settings:
    """Return the settings of the environment. Missing ones are taken from the stack that runs in the folder.

    Ends the command if a setting in ``needs`` is missing.
    """
    from everyrun.cli.chosen import settings_in
    from everyrun.settings import SettingsError

    try:
        settings, stack = settings_in(data_dir)
    except SettingsError as error:
        fail(str(error))
    try:
        return settings.need(*needs)
    except SettingsError as error:
        missing = "" if stack else f"no stack runs in {data_dir} (start one with: everyrun up), and\n"
        fail(f"{missing}{error}", exits.NOT_FOUND)


def run(work: Callable[[], Coroutine[Any, Any, T]], code: int = exits.ERROR) -> T:
    """Run ``work`` and return its result. An expected error ends the command with a message and the exit code ``code``.

    The exit code is NOT_FOUND if something was not found, and INTERRUPTED if a signal ended the work.
    """
    import asyncio

    import asyncpg
    from aiokafka.errors import KafkaError

    from everyrun.cli.signals import StoppedError, until_stopped
    from everyrun.redact import describe
    from everyrun.replay.archive.object_store import OBJECT_STORE_ERRORS

    try:
        return asyncio.run(until_stopped(work()))
    except StoppedError:
        fail("stopped before the work was complete", exits.INTERRUPTED)
    except EveryrunError as error:
        fail(str(error), exits.of(error, code))
    except FileNotFoundError as error:
        fail(str(error), exits.NOT_FOUND)
    except KafkaError as error:
        fail(f"Kafka: {describe(error)}", code)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        fail(f"Postgres: {describe(error)}", code)
    except OBJECT_STORE_ERRORS as error:
        fail(describe(error), code)
