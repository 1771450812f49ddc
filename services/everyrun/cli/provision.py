"""``topics`` and ``migrate``: a Kafka and a Postgres of one's own made ready. ``up`` does both by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import typer

from everyrun.cli.console import err, fail
from everyrun.redact import describe
from everyrun.settings import Settings, SettingsError, load

T = TypeVar("T")

topics_app = typer.Typer(no_args_is_help=True, help="The topics on a Kafka of your own: create them, check them.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    panel = "A Kafka and a Postgres of your own"
    app.add_typer(topics_app, name="topics", rich_help_panel=panel)
    app.command(rich_help_panel=panel)(migrate)


def _settings(*needs: str) -> Settings:
    try:
        return load().need(*needs)
    except SettingsError as error:
        fail(str(error))


def _at_kafka(ask: Callable[[Settings], Awaitable[T]]) -> T:
    from aiokafka.errors import KafkaError

    settings = _settings("kafka_bootstrap")

    async def run() -> T:
        return await ask(settings)

    try:
        return asyncio.run(run())
    except (KafkaError, OSError) as error:
        fail(f"Kafka at {settings.kafka_bootstrap} (EVERYRUN_KAFKA_BOOTSTRAP): {describe(error)}")


@topics_app.command()
def create() -> None:
    """Create the topics that are missing, as they are declared.

    Example: EVERYRUN_KAFKA_BOOTSTRAP=kafka:9092 EVERYRUN_KAFKA_REPLICATION=3 everyrun topics create
    """
    from everyrun.log import topics

    made = _at_kafka(topics.create)
    err.print(f"Created: {', '.join(made)}" if made else "Every topic is there already.")


@topics_app.command()
def check() -> None:
    """Compare the topics with their declaration; ends with 1 on a difference that could lose data.

    Example: EVERYRUN_KAFKA_BOOTSTRAP=kafka:9092 everyrun topics check
    """
    from everyrun.log import topics

    try:
        _at_kafka(topics.check)
    except topics.TopicsError as error:
        fail(str(error))
    err.print("Every topic is as declared.")


def migrate() -> None:
    """Make the schemas everyrun and everyrun_queue in a Postgres, or bring them up to date.

    Example: EVERYRUN_POSTGRES_DSN=postgresql://everyrun:secret@db/everyrun everyrun migrate
    """
    from everyrun.store import migrate as migrations

    settings = _settings("postgres_dsn")
    try:
        migrations.migrate(settings.postgres_dsn.get_secret_value())
    except migrations.MigrationError as error:
        fail(str(error))
    err.print(f"Up to date: {', '.join(migrations.SCHEMAS)}.")
