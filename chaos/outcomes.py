"""Keep the outcome of each cell in a file, so that an interrupted run resumes, and show outcomes as tables."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from chaos.cells import Cell

#: Prefix of the names of the audits that follow the cells of a stack.
AUDIT = "log-of/"


class Outcome(msgspec.Struct, frozen=True):
    """The outcome of a cell with a seed; it is good if there are no ``problems``.

    ``what`` is what was done, in words; ``deaths`` counts the restarts of parts.
    """

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
        """The verdict as a few words, or the problems."""
        return "balanced, equals the truth" if not self.problems else "FAILED: " + "; ".join(self.problems)


def ended(
    cell: str,
    seed: int,
    what: str,
    began: float,
    problems: list[str],
    *,
    expected: int = 0,
    settled: int = 0,
    duplicates: int = 0,
    double_batches: int = 0,
    deaths: int = 0,
) -> Outcome:
    """Return the outcome of a cell that began at ``began`` (monotonic) and has just ended on this machine."""
    return Outcome(
        cell=cell,
        seed=seed,
        what=what,
        seconds=time.monotonic() - began,
        expected=expected,
        settled=settled,
        duplicates=duplicates,
        double_batches=double_batches,
        deaths=deaths,
        problems=problems,
        machine=_machine(),
        date=datetime.now(UTC).date().isoformat(),
    )


def _machine() -> str:
    """Describe this machine: cores, processor and Python version."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return f"{os.cpu_count()} cores of {name}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, Python {platform.python_version()}"


def _path(folder: Path, cell: str, seed: int) -> Path:
    return folder / f"{cell.replace('/', '.')}.{seed}.json"


def keep(folder: Path, outcome: Outcome) -> None:
    """Write the outcome to its file, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(folder, outcome.cell, outcome.seed)
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(outcome)))
    new.replace(path)


def known(folder: Path, cell: Cell, seed: int) -> Outcome | None:
    """Return the kept outcome of a cell, or None if it has not been played."""
    path = _path(folder, cell.name, seed)
    return msgspec.json.decode(path.read_bytes(), type=Outcome) if path.exists() else None


def audits(folder: Path) -> list[Outcome]:
    """Return the outcomes of the audits that followed the cells of each stage."""
    paths = sorted(folder.glob(f"{AUDIT.replace('/', '.')}*.json"))
    found = [msgspec.json.decode(path.read_bytes(), type=Outcome) for path in paths]
    return sorted(found, key=lambda one: (one.seed, one.date))


def audits_markdown(found: Iterable[Outcome]) -> str:
    """Return the outcomes of audits as a Markdown table."""
    rows = [("seed", "time", "verdict", "the cells whose log was audited, and what was compared"), ("---",) * 4]
    for one in found:
        verdict = "the tables agree with the log" if not one.problems else "FAILED: " + "; ".join(one.problems)
        rows.append((str(one.seed), f"{one.seconds:.0f} s", verdict, one.what))
    return _lines(rows)


def forget(folder: Path, cell: Cell, seed: int) -> None:
    """Delete the kept outcome of a cell, so that it is played again."""
    _path(folder, cell.name, seed).unlink(missing_ok=True)


COLUMNS = ("cell", "seed", "time", "settled", "duplicates", "double batches", "deaths", "verdict")


def line(outcome: Outcome) -> tuple[str, ...]:
    """Return the outcome as a row of the table."""
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
    """Return outcomes as a Markdown table."""
    rows = [(*COLUMNS, "what was done")]
    rows += [("---",) * len(rows[0]), *((*line(outcome), outcome.what) for outcome in outcomes)]
    return _lines(rows)


def _lines(rows: Iterable[tuple[str, ...]]) -> str:
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)


BEGIN, END = "<!-- {}: begin -->\n", "<!-- {}: end -->\n"


def into_page(page: str, name: str, text: str) -> str:
    """Return the page with its part of that name replaced. Raises ValueError if it has no such part."""
    begin, end = BEGIN.format(name), END.format(name)
    head, found, rest = page.partition(begin)
    _, ended, tail = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"the page has no part named {name}")
    return head + begin + text + end + tail
