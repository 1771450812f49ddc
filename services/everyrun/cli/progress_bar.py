"""Show a progress bar for work on many records, with its rate and the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from everyrun.cli.console import err


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Return the records per second."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "")


@contextmanager
def bulk_progress(what: str, unit: str, *, in_pipes: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error while the block runs. Yields the function that updates it: (done, total).

    If ``in_pipes`` is False, the bar is shown only on a terminal.
    """
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn(unit), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not (in_pipes or err.is_terminal)) as progress:
        task = progress.add_task(what, total=None)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield show
