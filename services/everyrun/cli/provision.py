"""Define ``topics`` and ``migrate``, which prepare your own Kafka and Postgres. ``up`` does both itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import typer

from everyrun.cli.console import err, fail

if TYPE_CHECKING:
    from everyrun.settings import Settings

T = TypeVar("T")

topics_app = typer.Typer(no_args_is_help=True, help="Create or check the topics on your own Kafka.")


def _settings(*needs: str) -> Settings:
    from everyrun.settings import SettingsError, load

    try:
        return load().need(*needs)
    except SettingsError as error:
        fail(str(error))


def _at_kafka(ask: Callable[[Settings], Awaitable[T]]) -> T:
    import asyncio

    from aiokafka.errors import KafkaError

    from everyrun.redact import describe

    settings = _settings("kafka_bootstrap")

    async def run() -> T:
        return await ask(settings)

    try:
        return asyncio.run(run())
    except (KafkaError, OSError) as error:
        fail(f"Kafka at {settings.kafka_bootstrap} (EVERYRUN_KAFKA_BOOTSTRAP): {describe(error)}")


@topics_app.command()
def create() -> None:
    """Create the missing topics.

    Example: EVERYRUN_KAFKA_BOOTSTRAP=kafka:9092 EVERYRUN_KAFKA_REPLICATION=3 everyrun topics create
    """
    from everyrun.log import topics

    made = _at_kafka(topics.create)
    err.print(f"Created: {', '.join(made)}" if made else "Every topic exists already.")


@topics_app.command()
def check() -> None:
    """Compare the topics' settings with those that Everyrun declares.

    Exit code 1: a setting differs in a way that could lose data.

    Example: EVERYRUN_KAFKA_BOOTSTRAP=kafka:9092 everyrun topics check
    """
    from everyrun.log import topics

    try:
        _at_kafka(topics.check)
    except topics.TopicsError as error:
        fail(str(error))
    err.print("Every topic is as declared.")


def migrate() -> None:
    """Create the tables in your own Postgres, or bring them up to date.

    Example: EVERYRUN_POSTGRES_DSN=postgresql://everyrun:secret@db/everyrun everyrun migrate
    """
    from everyrun.store import migrate as migrations

    settings = _settings("postgres_dsn")
    try:
        migrations.migrate(settings.postgres_dsn.get_secret_value())
    except migrations.MigrationError as error:
        fail(str(error))
    err.print(f"Up to date: {', '.join(migrations.SCHEMAS)}.")
