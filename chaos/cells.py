"""The cells of the fault matrix: what is done to a job in each. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import combinations
from random import Random

from everyrun.failpoints import POINTS

INPUTS = 5000
#: A cell that has not ended well after so many seconds has failed.
WITHIN = 90.0
#: What Extend does in every cell that says nothing else: a little of each.
USUAL = "drop=0.01,duplicate=0.05,reorder=0.1,slow=0.2"

_SERVICES = {"submission": "submission", "bridge": "bridge", "processor": "processor-0", "reconciler": "reconciler"}
#: Seconds that a stopped process stands still.
STOPPED = 20.0
#: How often a pair is killed, and the maximum number of seconds between its two kills.
VOLLEYS, MOST_GAP = 2, 1.9
#: The name of the tool itself among the parts that are killed while it runs.
TOOL = "tool"
STRUCK = (TOOL, "kafka", "postgres")


@dataclass(frozen=True)
class Strike:
    """Something done to a part of the stack; ``after`` seconds from the one before it."""

    part: str
    how: str
    after: float


@dataclass(frozen=True)
class Volley:
    """Two parts killed, ``gap`` seconds apart; ``after`` seconds from when a job had its first settled row."""

    first: str
    second: str
    after: float
    gap: float


@dataclass(frozen=True)
class ToolStrike:
    """A part, or the tool itself, killed while the tool runs; ``moment`` is a share of the time that a run takes."""

    part: str
    moment: float


@dataclass(frozen=True)
class Cell:
    """One cell: its name, what it does in words, Extend's faults, and how often which part is struck how.

    ``pair`` names two parts that are killed together, ``tool`` the command that runs while parts are killed.
    """

    name: str
    what: str
    faults: str = USUAL
    part: str = ""
    how: str = ""
    times: int = 0
    point: str = ""
    workers: int = 0
    pair: tuple[str, ...] = ()
    tool: str = ""

    def strikes(self, seed: int) -> list[Strike]:
        """When the part is struck: a function of the seed."""
        chance = Random(f"{seed}/{self.name}")
        return [Strike(self.part, self.how, chance.uniform(0.2, 3.0)) for _ in range(self.times)]

    def volleys(self, seed: int) -> list[Volley]:
        """Return when the pair is killed, in which order: a function of the seed."""
        chance = Random(f"{seed}/{self.name}")
        return [
            Volley(*chance.sample(self.pair, 2), after=chance.uniform(0.2, 3.0), gap=chance.uniform(0.0, MOST_GAP))
            for _ in range(VOLLEYS)
        ]

    def tool_strikes(self, seed: int) -> list[ToolStrike]:
        """Return what is killed while the tool runs, and when: a function of the seed."""
        chance = Random(f"{seed}/{self.name}")
        return [ToolStrike(part, chance.uniform(0.2, 0.9)) for part in chance.sample(STRUCK, len(STRUCK))]


def _process_cells() -> list[Cell]:
    hows = {
        "kill": ("kill -9, three times", 3),
        "stop": (f"SIGSTOP for {STOPPED:.0f} s", 1),
        "term": ("SIGTERM, three times", 3),
    }
    return [
        Cell(f"{service}/{how}", f"{service}: {what}", part=part, how=how, times=times)
        for service, part in _SERVICES.items()
        for how, (what, times) in hows.items()
    ]


def _base_cells() -> list[Cell]:
    hows = {"restart": "an orderly restart", "kill": "kill -9"}
    return [
        Cell(
            f"{base}/{how}", f"{base.capitalize()}: {what}", part=base, how="term" if how == "restart" else how, times=1
        )
        for base in ("kafka", "postgres")
        for how, what in hows.items()
    ]


_EXTEND = {
    # Each 429 stops all calls of its category for the second of its Retry-After.
    "429": ("answers 429 to half of the batches and a fifth of the reads", "submit_429=0.5,get_429=0.2,drop=0.02"),
    "500": ("fails a fifth of all calls with 5xx", "submit_5xx=0.2,get_5xx=0.2,drop=0.05"),
    "slow": ("answers after up to 3 s", "slow=3,drop=0.01"),
    # A batch so answered is in doubt for the window and two sweeps: at a fifth some chunk was so three times running.
    "garbage": ("answers a tenth of all calls with HTML", "garbage=0.1,drop=0.05"),
    "timeout-after-accept": ("takes half of the batches and never answers", "accept_then_timeout=0.5"),
    "clock-offset": ("signs webhooks with a clock 10 minutes behind", "skew=-600"),
    "url-expired": ("gives signed links that have expired", "url_expired=1"),
    "webhooks-lost": ("loses every webhook", "drop=1"),
    "webhooks-ten-times": ("sends every webhook ten times", "copies=9"),
}

MATRIX = (
    *_process_cells(),
    *_base_cells(),
    *(Cell(f"extend/{name}", f"Extend {what}", faults) for name, (what, faults) in _EXTEND.items()),
)


def _point_cell(point: str) -> Cell:
    needs = {"adopt": "accept_then_timeout=0.6", "polling": "drop=0.5", "deliveries": "none"}
    faults = needs.get(point.partition(".")[0], "drop=0.02,duplicate=0.1")
    return Cell(f"point/{point}", f"kill -9 at {point}", faults, point=point)


POINT_CELLS = tuple(_point_cell(point) for point in POINTS)
WORKER_CELLS = tuple(
    Cell(
        f"workers/{count}",
        f"{count} processors, one killed or terminated every few seconds, 60,000 events",
        workers=count,
    )
    for count in (2, 3)
)


def _pair_cells() -> list[Cell]:
    parts = {"submission": "submission", "kafka": "kafka", "postgres": "postgres", "processor": "processor-0"}
    return [
        Cell(
            f"pair/{one}+{other}",
            f"{one} and {other}: kill -9 within 2 s of each other, twice",
            pair=(parts[one], parts[other]),
        )
        for one, other in combinations(parts, 2)
    ]


PAIR_CELLS = tuple(_pair_cells())
TOOL_CELLS = tuple(
    Cell(f"audit/{tool}", f"everyrun {tool}: kill -9 of the command, of Kafka and of Postgres under it", tool=tool)
    for tool in ("rebuild", "audit", "as-of", "archive")
)
ALL = (*MATRIX, *POINT_CELLS, *WORKER_CELLS, *PAIR_CELLS, *TOOL_CELLS)


class NoSuchCellError(ValueError):
    """A pattern names no cell."""


def select(patterns: str) -> list[Cell]:
    """The cells that comma-separated patterns name (``bridge/*,point/*``); all where there are none.

    Raises NoSuchCellError.
    """
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()] or ["*"]
    for pattern in wanted:
        if not any(fnmatchcase(cell.name, pattern) for cell in ALL):
            raise NoSuchCellError(f"no cell is named {pattern!r}; there are: {', '.join(cell.name for cell in ALL)}")
    return [cell for cell in ALL if any(fnmatchcase(cell.name, pattern) for pattern in wanted)]
