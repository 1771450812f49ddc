"""What came of the cells: a file each, so that an interrupted run goes on; a table, and a page of the docs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from chaos.cells import Cell

#: Prefix of the names of the audits that follow the cells of a stack.
AUDIT = "log-of/"


class Outcome(msgspec.Struct, frozen=True):
    """What came of a cell with a seed; it is good if there are no ``problems``."""

    cell: str
    seed: int
    what: str
    seconds: float
    expected: int
    settled: int
    duplicates: int
    double_batches: int
    deaths: int
    problems: list[str]
    machine: str
    date: str

    @property
    def verdict(self) -> str:
        """In a word or a sentence."""
        return "balanced, equals the truth" if not self.problems else "FAILED: " + "; ".join(self.problems)


def _path(folder: Path, cell: str, seed: int) -> Path:
    return folder / f"{cell.replace('/', '.')}.{seed}.json"


def keep(folder: Path, outcome: Outcome) -> None:
    """Write it down, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(folder, outcome.cell, outcome.seed)
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(outcome)))
    new.replace(path)


def known(folder: Path, cell: Cell, seed: int) -> Outcome | None:
    """What was written down of a cell, if anything."""
    path = _path(folder, cell.name, seed)
    return msgspec.json.decode(path.read_bytes(), type=Outcome) if path.exists() else None


def audits(folder: Path) -> list[Outcome]:
    """What the audits came to, one after the cells of each stage."""
    paths = sorted(folder.glob(f"{AUDIT.replace('/', '.')}*.json"))
    found = [msgspec.json.decode(path.read_bytes(), type=Outcome) for path in paths]
    return sorted(found, key=lambda one: (one.seed, one.date))


def audits_markdown(found: Iterable[Outcome]) -> str:
    """The table of the audits for a page."""
    rows = [("seed", "time", "verdict", "the cells whose log it was, and what was compared"), ("---",) * 4]
    for one in found:
        verdict = "the tables are what the log says" if not one.problems else "FAILED: " + "; ".join(one.problems)
        rows.append((str(one.seed), f"{one.seconds:.0f} s", verdict, one.what))
    return _lines(rows)


def forget(folder: Path, cell: Cell, seed: int) -> None:
    """Let the cell be run again."""
    _path(folder, cell.name, seed).unlink(missing_ok=True)


COLUMNS = ("cell", "seed", "time", "settled", "duplicates", "double batches", "deaths", "verdict")


def line(outcome: Outcome) -> tuple[str, ...]:
    """A line of the table."""
    settled = f"{outcome.settled:,} of {outcome.expected:,}"
    numbers = (str(outcome.duplicates), str(outcome.double_batches), str(outcome.deaths))
    return (
        outcome.cell,
        str(outcome.seed),
        f"{outcome.seconds:.0f} s",
        settled,
        *numbers,
        outcome.verdict,
    )


def markdown(outcomes: Iterable[Outcome]) -> str:
    """The table for a page."""
    rows = [(*COLUMNS, "what was done")]
    rows += [("---",) * len(rows[0]), *((*line(outcome), outcome.what) for outcome in outcomes)]
    return _lines(rows)


def _lines(rows: Iterable[tuple[str, ...]]) -> str:
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)


BEGIN, END = "<!-- {}: begin -->\n", "<!-- {}: end -->\n"


def into_page(page: str, name: str, text: str) -> str:
    """The page with the part of that name replaced. Raises ValueError where it has none."""
    begin, end = BEGIN.format(name), END.format(name)
    head, found, rest = page.partition(begin)
    _, ended, tail = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"the page has no part named {name}")
    return head + begin + text + end + tail
