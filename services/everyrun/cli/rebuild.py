"""``everyrun rebuild``, and functions that it shares with ``audit``, ``as-of`` and ``replay``."""

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


def rebuild(
    schema: Annotated[
        str | None, typer.Option(help="Schema to write the rebuilt tables to.", show_default="everyrun_rebuild")
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME|OFFSETS",
            help="Last time to include, or the first offsets to leave out: batches:0=12,runs:0=400,...",
        ),
    ] = None,
    swap: Annotated[bool, typer.Option("--swap", help="Make the rebuilt tables the live ones.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming.")] = False,
    from_archive: Annotated[
        str | None,
        typer.Option(metavar="DIR|URL", help="Archive to read first. Records that it lacks are read from Kafka."),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="Number of processes to divide the partitions among.")
    ] = 1,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Rebuild every result table from the log.

    An interrupted rebuild resumes when you run the command again.

    With --swap, the rebuilt tables replace the live tables as soon as both have reached exactly the same offsets. All
    services keep running.

    Example: everyrun rebuild --swap
    """
    from everyrun.replay import log_position
    from everyrun.replay.archive.reader import ArchiveAndLog
    from everyrun.replay.rebuild import rebuild_schema
    from everyrun.replay.rebuild.swap import rebuild_and_swap

    if swap and until is not None:
        raise typer.BadParameter("--swap rebuilds up to the offsets of the live tables: leave out --until")
    if swap and from_archive is not None:
        raise typer.BadParameter("--swap reads the live log: leave out --from-archive")
    if processes > 1 and from_archive is not None:
        raise typer.BadParameter("--from-archive reads in one process: leave out --processes")
    position = None if until is None else position_from(until, "--until")
    settings = settings_of(data_dir, "kafka_bootstrap", "postgres_dsn")
    name = schema or rebuild_schema.DEFAULT_SCHEMA

    async def work(on_progress: Callable[[RebuildProgress], None]) -> None:
        if swap:
            swapped = await rebuild_and_swap(
                settings, on_progress, schema=name, fresh=fresh, processes=processes, notify=_print
            )
            err.print(
                f"The rebuilt tables are live, with {swapped.records} records. The last {swapped.last} were applied "
                f"under the lock, which was held for {swapped.lock_seconds * 1000:.0f} ms."
            )
            if swapped.left_over:
                err.print(f"[yellow]The old tables are still in the schema {swapped.left_over}: {swapped.reason}[/]")
            return
        offsets = await log_position.resolve_offsets(settings, position)
        source = await ArchiveAndLog.open(from_archive, settings) if from_archive else None
        rebuilt = await rebuild_schema.rebuild(
            settings, offsets, on_progress, schema=name, fresh=fresh, source=source, processes=processes
        )
        earlier = f" ({rebuilt.before} were applied by an earlier run)" if rebuilt.before else ""
        err.print(f"Schema {name}: applied {rebuilt.applied} records in {rebuilt.seconds:.1f} s{earlier}.")

    with rebuild_progress("rebuild") as on_progress:
        run_resumable(work(on_progress))


def position_from(text: str, parameter: str) -> LogPosition:
    """Return the log position that ``text`` names. Raises BadParameter if it names none.

    Prints a warning if the position is a time in the future.
    """
    from everyrun.replay import log_position
    from everyrun.replay.errors import LogPositionError

    try:
        position = log_position.parse_position(text)
    except LogPositionError as error:
        raise typer.BadParameter(str(error), param_hint=parameter) from None
    if isinstance(position, datetime) and position > datetime.now(UTC):
        err.print(f"[yellow]{text} is in the future: the log is read up to its present end[/]", soft_wrap=True)
    return position


def time_from(text: str | None, option: str) -> datetime | None:
    """Return the time that an option's ``text`` names, or None if the option is not given.

    Raises BadParameter if the text names no time.
    """
    if text is None:
        return None
    from everyrun.replay.times import TimeError, parse_time

    try:
        return parse_time(text)
    except TimeError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _print(text: str) -> None:
    err.print(text)


@contextmanager
def rebuild_progress(label: str) -> Iterator[Callable[[RebuildProgress], None]]:
    """Show a progress bar with the number of records, their rate and the time left. Yields a function to update it."""
    from everyrun.cli.progress_bar import bulk_progress

    with bulk_progress(label, "records") as show:
        yield lambda progress: show(progress.before + progress.applied, progress.before + progress.total)


def run_resumable(work: Coroutine[Any, Any, T], code: int = exits.ERROR) -> T:
    """Run work that can be interrupted, and return its result.

    When the command is repeated, the work resumes where it stopped. If the work fails, print why and end the command
    with ``code``.
    """
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
        # The program that reads our output has closed the pipe. Click then ends the command silently.
        raise
    except (KafkaError, *POSTGRES_AWAY) as error:
        fail(f"interrupted by an error: {describe(error)}. To resume, run the same command again.", code)
    except StoppedError:
        fail("stopped by a signal. To resume, run the same command again.", exits.INTERRUPTED)
