"""``everyrun rebuild``, and what it has in common with ``audit`` and ``as-of``."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from everyrun.cli import exits
from everyrun.cli.arguments import DataDir
from everyrun.cli.backends import settings_of
from everyrun.cli.console import err, fail
from everyrun.errors import EveryrunError

if TYPE_CHECKING:
    from everyrun.replay.log_position import LogPosition
    from everyrun.replay.progress import RebuildProgress

T = TypeVar("T")

PANEL = "The log"


def rebuild(
    schema: Annotated[
        str | None, typer.Option(help="The schema to make them in.", show_default="everyrun_rebuild")
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="TIME|OFFSETS", help="Up to here only: a time, or batches:0=12,runs:0=400,..."),
    ] = None,
    swap: Annotated[
        bool, typer.Option("--swap", help="Put it live afterwards, in the place of the tables now.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew; else it goes on where it was.")] = False,
    from_archive: Annotated[
        str | None, typer.Option(metavar="DIR|URL", help="Read an archive as far as it reaches, then Kafka.")
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="Processes at work, each with a share of the partitions.")
    ] = 1,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Rebuild every result table from the log.

    One that was stopped or killed goes on where it was. With --swap it then takes the place of the live tables, at
    exactly their offsets, while everything runs.

    Example: everyrun rebuild --swap
    """
    from everyrun.replay import log_position
    from everyrun.replay.archive.reader import ArchiveAndLog
    from everyrun.replay.rebuild import rebuild_schema
    from everyrun.replay.rebuild import swap as swapping

    if swap and until is not None:
        raise typer.BadParameter("--swap brings the tables to where the live ones are: give no --until with it")
    if swap and from_archive is not None:
        raise typer.BadParameter("--swap reads the live log: give no --from-archive with it")
    if processes > 1 and from_archive is not None:
        raise typer.BadParameter("--from-archive reads in one process: give no --processes with it")
    wanted = None if until is None else moment_of(until, "--until")
    settings = settings_of(data_dir, "kafka_bootstrap", "postgres_dsn")
    name = schema or rebuild_schema.DEFAULT_SCHEMA

    async def work(tell: Callable[[RebuildProgress], None]) -> None:
        if swap:
            done = await swapping.rebuild_and_swap(
                settings, tell, schema=name, fresh=fresh, processes=processes, notify=_say
            )
            err.print(
                f"The rebuilt tables are live: {done.records} records; the last {done.last} under the lock, which was "
                f"held for {done.lock_seconds * 1000:.0f} ms."
            )
            if done.left_over:
                err.print(f"[yellow]The tables before are still there, in schema {done.left_over}: {done.reason}[/]")
            return
        offsets = await log_position.resolve_offsets(settings, wanted)
        source = await ArchiveAndLog.open(from_archive, settings) if from_archive else None
        made = await rebuild_schema.rebuild(
            settings, offsets, tell, schema=name, fresh=fresh, source=source, processes=processes
        )
        again = f", {made.before} were there before" if made.before else ""
        err.print(f"Schema {name}: {made.applied} records in {made.seconds:.1f} s{again}.")

    with counted("rebuild") as tell:
        run(work(tell))


def moment_of(text: str, option: str) -> LogPosition:
    """The moment that a parameter names. Ends the command as wrongly called where it names none."""
    from everyrun.replay import log_position
    from everyrun.replay.errors import LogPositionError

    try:
        found = log_position.parse_position(text)
    except LogPositionError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
    if isinstance(found, datetime) and found > datetime.now(UTC):
        err.print(f"[yellow]{text} is in the future: the log is taken as it is now[/]", soft_wrap=True)
    return found


def _say(text: str) -> None:
    err.print(text)


@contextmanager
def counted(what: str) -> Iterator[Callable[[RebuildProgress], None]]:
    """A bar of the records done, their rate and the time left."""
    from everyrun.cli.progress_bar import bulk_progress

    with bulk_progress(what, "records") as show:
        yield lambda progress: show(progress.before + progress.applied, progress.before + progress.total)


def run(work: Coroutine[Any, Any, T], code: int = exits.ERROR) -> T:
    """What the work returns. Where it cannot be done, says why and ends the command with the code."""
    import asyncio

    from aiokafka.errors import KafkaError

    from everyrun.cli.signals import StoppedError, until_stopped
    from everyrun.memory import reduce_garbage_collection
    from everyrun.redact import describe
    from everyrun.store.pool import POSTGRES_AWAY

    reduce_garbage_collection()
    try:
        return asyncio.run(until_stopped(work))
    except EveryrunError as error:
        fail(str(error), exits.of(error, code))
    except BrokenPipeError:
        # Nobody reads our output any more: Click ends the command as is usual then.
        raise
    except (KafkaError, *POSTGRES_AWAY) as error:
        fail(f"{describe(error)}. What is done stays so: the same command goes on from there.", code)
    except StoppedError:
        fail("Stopped. The same command goes on from here.", exits.INTERRUPTED)
