"""``everyrun history``: show every event that touched an input, a run or a batch, and what each event changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from everyrun.cli import exits
from everyrun.cli.arguments import DataDir
from everyrun.cli.backends import run, settings_of
from everyrun.cli.console import err, fail, folding, out, print_table

if TYPE_CHECKING:
    from everyrun.replay.history.historian import History
    from everyrun.settings import Settings


def history(
    identifier: Annotated[str, typer.Argument(metavar="INPUT|RUN|BATCH", help="An input id, a run id or a batchId.")],
    as_json: Annotated[bool, typer.Option("--json", help="Write everything as JSON.")] = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Show every event that touched an input, a run or a batch.

    The events explain why a row in the result tables has its values. They are read from Kafka, with the help of an
    index that the replay service maintains. The command first adds the missing events to the index.

    Exit code 1: the row in the live tables differs in some column from what the events say. Exit code 4: the id is
    unknown, because neither an event nor the queue contains it.

    Example: everyrun history sub_01k...:invoice-000017
    """
    if re.fullmatch(r"sub_[0-9a-z]+", identifier):
        fail(
            f"{identifier} is a submission; history is about one input ({identifier}:ID), a run or a batch. "
            f"See: everyrun report {identifier}, everyrun results {identifier}",
            exits.USAGE,
        )
    settings = settings_of(data_dir, "kafka_bootstrap", "postgres_dsn")
    from everyrun.cli.progress_bar import bulk_progress

    with bulk_progress("not indexed yet", "records", in_pipes=False) as progress:
        found = run(lambda: _ask(settings, identifier, progress))
    if as_json:
        import msgspec

        typer.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
    else:
        _show(found)
    if found.agrees is False:
        raise typer.Exit(exits.ERROR)


async def _ask(settings: Settings, identifier: str, progress: Callable[[int, int], None]) -> History:
    import asyncpg

    from everyrun.replay.history.event_index import ForeignIndexError, catch_up
    from everyrun.replay.history.historian import historian
    from everyrun.store.pool import open_pool

    no_index = (asyncpg.InsufficientPrivilegeError, asyncpg.ReadOnlySQLTransactionError, asyncpg.UndefinedTableError)
    async with await open_pool(settings, name="history", max_size=2) as pool, historian(settings, pool) as asked:
        try:
            await catch_up(settings, asked.index, progress)
        except (*no_index, ForeignIndexError) as error:
            # A user without the right to write the index gets an answer anyway, only more slowly.
            err.print(f"[dim]what is not indexed is read from the log: {escape(str(error))}")
        return await asked.history(identifier, progress)


def _show(found: History) -> None:
    table = Table("appended at", "event", "at", folding("what it changed"), title=f"{found.kind} {found.id}")
    for event in found.events:
        kind = event.type + (f"\n[dim]replay of {event.replayed}[/]" if event.replayed else "")
        where = f"{event.topic}/{event.partition}@{event.offset}"
        table.add_row(event.appended_at[:23].replace("T", " "), kind, where, escape(event.what))
    print_table(table)
    if found.status is not None:
        run_id = f", by {found.run_id}" if found.run_id else ""
        by = "By the queue" if found.waiting is not None else "By these events"
        out.print(f"{by} it is [bold]{found.status}[/]{run_id}.")
    if found.waiting is not None:
        helps = f" You can: {found.waiting.what_to_do}" if found.waiting.what_to_do else ""
        out.print(f"It has no row in the tables yet: {escape(found.waiting.reason)}.{escape(helps)}", soft_wrap=True)
    if found.agrees is True:
        out.print("The row in the tables says the same, in every column.")
    elif found.agrees is False:
        err.print("[red]The row in the tables says something else:[/]")
        for one in found.differences:
            text = f"{one.column}: the tables say {one.live!r}, the events {one.log!r}"
            if one.column == "*" and one.log is not None:
                text = f"{one.live}, and the events make one"
            err.print(f"  [red]{escape(text)}[/]", soft_wrap=True)
        err.print("If the processor is behind, ask again; else see: everyrun audit")
