"""Run ``make chaos``: play the cells that have no outcome yet, show all outcomes, and write them into the docs."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from chaos import outcomes, play_job, play_pair, play_processors, play_tool
from chaos.cells import (
    ALL,
    CANCEL_CELLS,
    INPUTS,
    MATRIX,
    PAIR_CELLS,
    POINT_CELLS,
    RETRY_CELLS,
    TOOL_CELLS,
    WITHIN,
    WORKER_CELLS,
    Cell,
    NoSuchCellError,
    select,
)
from chaos.log_audit import audit
from chaos.outcomes import Outcome
from chaos.stage import running_stage, silence_kafka_client
from everyrun.cli.signals import StoppedError, until_stopped

RESULTS = Path(".chaos")
PAGE = Path("docs/reference/chaos.md")
#: Cells that are played on one stage, so that the emulator's truth does not grow without limit.
_CELLS_PER_STAGE = 10
_console = Console(width=None if sys.stdout.isatty() else 180)


def main(
    cells: Annotated[
        str, typer.Option(help="Comma-separated patterns of cells, such as bridge/*,point/*; all cells if empty.")
    ] = "",
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds; each cell is played with each seed.")] = "1",
    inputs: Annotated[int, typer.Option(min=1, help="Number of inputs of a job.")] = INPUTS,
    within: Annotated[float, typer.Option(min=10, help="Maximum number of seconds for a cell.")] = WITHIN,
    minutes: Annotated[float, typer.Option(min=0, help="Minutes after which no cell starts; 0 for no limit.")] = 0,
    again: Annotated[bool, typer.Option(help="Play the chosen cells again, even if their outcomes are kept.")] = False,
    results: Annotated[Path, typer.Option(help="Folder of the kept outcomes.")] = RESULTS,
) -> None:
    """Break every part of a stack in every way while a job runs, and compare the result with the truth.

    An interrupted run resumes. Exits with 0 only if every chosen cell has been played and ended well.

    Example: python -m chaos --cells 'bridge/*,extend/429' --seeds 1,2,3
    """
    try:
        chosen = [(cell, int(seed)) for seed in seeds.split(",") for cell in select(cells)]
    except NoSuchCellError as error:
        raise typer.BadParameter(str(error)) from None
    except ValueError:
        raise typer.BadParameter(f"--seeds: {seeds!r} is not a list of numbers; write for example 1,2,3") from None
    if again:
        for cell, seed in chosen:
            outcomes.forget(results, cell, seed)
    left = [(cell, seed) for cell, seed in chosen if outcomes.known(results, cell, seed) is None]
    _console.print(
        f"{len(chosen)} cells; {len(chosen) - len(left)} have been played before; outcomes are kept in {results}"
    )
    until = time.monotonic() + minutes * 60 if minutes else float("inf")
    silence_kafka_client()
    with suppress(StoppedError):
        asyncio.run(until_stopped(_play_all(left, inputs, within, until, results)))
    found = [known for cell, seed in chosen if (known := outcomes.known(results, cell, seed)) is not None]
    _show_table(found)
    _write_page(results)
    if len(found) < len(chosen):
        _console.print(f"{len(chosen) - len(found)} cells are left; run the same command to resume")
    good = not any(one.problems for one in (*found, *outcomes.audits(results)))
    raise typer.Exit(0 if len(found) == len(chosen) and good else 1)


async def _play_all(left: list[tuple[Cell, int]], inputs: int, within: float, until: float, results: Path) -> None:
    for cell, seed in [pair for pair in left if pair[0].workers]:
        if time.monotonic() < until:
            with tempfile.TemporaryDirectory(prefix="everyrun-chaos-", ignore_cleanup_errors=True) as folder:
                _console.print(f"[dim]{cell.name}, seed {seed}: {cell.what}")
                _keep(await play_processors.play(Path(folder), cell, seed, _show_progress), results)
    staged_cells = [pair for pair in left if not pair[0].workers]
    for seed in sorted({seed for _, seed in staged_cells}):
        mine = [cell for cell, its in staged_cells if its == seed]
        while mine and time.monotonic() < until:
            mine = await _on_a_stage(mine, seed, (inputs, within), until, results)


async def _on_a_stage(cells: list[Cell], seed: int, job: tuple[int, float], until: float, results: Path) -> list[Cell]:
    """Play cells on one stack until one fails, as its remains could spoil the next; then audit the log.

    Return the cells that are left.
    """
    _console.print("[dim]starting a stack")
    with tempfile.TemporaryDirectory(prefix="everyrun-chaos-", ignore_cleanup_errors=True) as folder:
        async with running_stage(Path(folder), seed) as stage:
            played: list[Cell] = []
            for cell in cells[:_CELLS_PER_STAGE]:
                if time.monotonic() > until:
                    break
                _console.print(f"[dim]{cell.name}, seed {seed}: {cell.what}")
                player = play_pair if cell.pair else play_tool if cell.tool else play_job
                outcome = await player.play(stage, cell, seed, _show_progress, *job)
                _keep(outcome, results)
                played.append(cell)
                if outcome.problems:
                    log_file = results / f"{cell.name.replace('/', '.')}.{seed}.log"
                    log_file.write_text(stage.tail())
                    break
            if played:
                _console.print("[dim]auditing the log of these cells")
                _keep(await audit(stage, played, seed), results)
    return cells[len(played) :]


_last_shown = 0.0


def _show_progress(progress: str) -> None:
    global _last_shown
    if time.monotonic() - _last_shown > 5:
        _last_shown = time.monotonic()
        _console.print(f"[dim]    {progress}")


def _keep(outcome: Outcome, results: Path) -> None:
    outcomes.keep(results, outcome)
    colour = "red" if outcome.problems else "green"
    _console.print(f"[{colour}]{outcome.cell}[/], seed {outcome.seed}: {outcome.seconds:.0f} s, {outcome.verdict}")


def _show_table(found: list[Outcome]) -> None:
    table = Table(title="What was broken, and what came of it")
    for name in outcomes.COLUMNS:
        table.add_column(name, no_wrap=name != "verdict")
    for outcome in found:
        table.add_row(*outcomes.line(outcome), style="red" if outcome.problems else "")
    _console.print(table)


def _write_page(results: Path) -> None:
    """Write the tables of the page, if every cell of the matrix has been played."""
    seeds = sorted({int(path.stem.rpartition(".")[2]) for path in results.glob("*.json") if path.stem[-1].isdigit()})
    found = [one for cell in ALL for seed in seeds if (one := outcomes.known(results, cell, seed)) is not None]
    missing = {cell.name for cell in MATRIX} - {one.cell for one in found}
    if missing or not PAGE.exists():
        _console.print(f"[dim]{PAGE} is unchanged: {len(missing)} cells of the matrix have not been played")
        return
    page = PAGE.read_text()
    others = (*POINT_CELLS, *WORKER_CELLS, *RETRY_CELLS, *CANCEL_CELLS)
    parts = {"matrix": MATRIX, "pairs": PAIR_CELLS, "tools": TOOL_CELLS, "others": others}
    for name, cells in parts.items():
        names = {cell.name for cell in cells}
        page = outcomes.into_page(page, name, outcomes.markdown(one for one in found if one.cell in names))
    page = outcomes.into_page(page, "audits", outcomes.audits_markdown(outcomes.audits(results)))
    last = max(found, key=lambda one: one.date)
    page = outcomes.into_page(page, "machine", f"{last.machine}; last run on {last.date}.\n")
    PAGE.write_text(page)
    _console.print(f"[dim]written: {PAGE}")


if __name__ == "__main__":
    typer.run(main)
