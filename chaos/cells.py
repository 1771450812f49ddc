"""The cells of the fault matrix: what each does to a running job. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import combinations
from random import Random

from everyrun.failpoints import POINTS

INPUTS = 5000
#: A cell that has not ended well after this many seconds has failed.
WITHIN = 90.0
#: Faults of Extend before the retry of a cell that retries.
FAILING = "fail=0.1"
#: Faults of Extend in every cell that names no others.
USUAL = "drop=0.01,duplicate=0.05,reorder=0.1,slow=0.2"

_SERVICES = {"submission": "submission", "bridge": "bridge", "processor": "processor-0", "reconciler": "reconciler"}
#: Seconds for which a process is stopped.
STOPPED = 20.0
#: How often a pair of parts is killed, and the maximum number of seconds between the two kills.
PAIR_STRIKES, MAX_GAP = 2, 1.9
#: Stands for the tool itself among the parts that are killed while it runs.
TOOL = "tool"
TOOL_TARGETS = (TOOL, "kafka", "postgres")


@dataclass(frozen=True)
class Strike:
    """A strike at a part of the stack, ``after`` seconds from the strike before it."""

    part: str
    how: str
    after: float


@dataclass(frozen=True)
class PairStrike:
    """Two parts killed ``gap`` seconds apart, ``after`` seconds from the first settled row of a job."""

    first: str
    second: str
    after: float
    gap: float


@dataclass(frozen=True)
class ToolStrike:
    """A kill of a part, or of the tool itself, while the tool runs; ``moment`` is a share of the duration of a run."""

    part: str
    moment: float


@dataclass(frozen=True)
class Cell:
    """One cell: its name, its description, Extend's faults, and which part is struck how and how often.

    ``point`` is a failpoint, ``workers`` a number of processors, ``pair`` two parts that are killed together, and
    ``tool`` the command that runs while parts are killed. If ``retried`` is true, a tenth of the inputs fails first,
    these inputs are retried, and everything else happens to the retry. If ``cancelled`` is true, the job is cancelled
    once Extend has some of its runs.
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
    retried: bool = False
    cancelled: bool = False

    def strikes(self, seed: int) -> list[Strike]:
        """Return the strikes at the part, which follow from the seed."""
        chance = Random(f"{seed}/{self.name}")
        return [Strike(self.part, self.how, chance.uniform(0.2, 3.0)) for _ in range(self.times)]

    def pair_strikes(self, seed: int) -> list[PairStrike]:
        """Return when and in which order the pair is killed, which follows from the seed."""
        chance = Random(f"{seed}/{self.name}")
        return [
            PairStrike(*chance.sample(self.pair, 2), after=chance.uniform(0.2, 3.0), gap=chance.uniform(0.0, MAX_GAP))
            for _ in range(PAIR_STRIKES)
        ]

    def tool_strikes(self, seed: int) -> list[ToolStrike]:
        """Return what is killed while the tool runs and when, which follows from the seed."""
        chance = Random(f"{seed}/{self.name}")
        return [ToolStrike(part, chance.uniform(0.2, 0.9)) for part in chance.sample(TOOL_TARGETS, len(TOOL_TARGETS))]


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
    # Each 429 stops all calls of its category for one second, as its Retry-After asks.
    "429": ("answers 429 to half of the batches and a fifth of the reads", "submit_429=0.5,get_429=0.2,drop=0.02"),
    "500": ("fails a fifth of all calls with 5xx", "submit_5xx=0.2,get_5xx=0.2,drop=0.05"),
    "slow": ("answers after up to 3 s", "slow=3,drop=0.01"),
    # A batch answered like this is in doubt for the window and two sweeps. At a fifth, some chunk met it three times.
    "garbage": ("answers a tenth of all calls with HTML", "garbage=0.1,drop=0.05"),
    "timeout-after-accept": ("accepts half of the batches and never answers", "accept_then_timeout=0.5"),
    "clock-offset": ("signs webhooks with a clock that is 10 minutes slow", "skew=-600"),
    "url-expired": ("sends signed links that have expired", "url_expired=1"),
    "webhooks-lost": ("loses every webhook", "drop=1"),
    "webhooks-ten-times": ("sends every webhook ten times", "copies=9"),
}

MATRIX = (
    *_process_cells(),
    *_base_cells(),
    *(Cell(f"extend/{name}", f"Extend {what}", faults) for name, (what, faults) in _EXTEND.items()),
)


#: At this failpoint, a chunk is cancelled that was not sent. So Extend accepts nothing in its cell.
UNSENT = "cancel.after_produce"


def _point_cell(point: str) -> Cell:
    part = point.partition(".")[0]
    needs = {
        "adopt": "accept_then_timeout=0.6",
        "polling": "drop=0.5",
        "deliveries": "none",
        UNSENT: "submit_429=1",
    }
    faults = needs.get(point, needs.get(part, "drop=0.02,duplicate=0.1"))
    what = f"kill -9 at {point}"
    return Cell(f"point/{point}", what, faults, point=point, retried=part == "retry", cancelled=part == "cancel")


#: The parts whose failpoints a job does not reach, because it has no receiver of notifications. The integration tests
#: of the notifier reach them.
WITHOUT_CELL = ("planner", "sender")
POINT_CELLS = tuple(_point_cell(point) for point in POINTS if point.partition(".")[0] not in WITHOUT_CELL)
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


def _job_cells(name: str, what: str, **job: bool) -> list[Cell]:
    """Return a cell for each service, which is killed during what is done to the job."""
    return [
        Cell(
            f"{name}/{service}",
            f"{service}: kill -9, three times during a {what}",
            part=part,
            how="kill",
            times=3,
            **job,
        )
        for service, part in _SERVICES.items()
    ]


RETRY_CELLS = (
    *_job_cells("retry", "retry", retried=True),
    Cell(
        "retry/timeout-after-accept",
        "Extend accepts half of a retry's batches and never answers",
        "accept_then_timeout=0.5",
        retried=True,
    ),
)
CANCEL_CELLS = (
    *_job_cells("cancel", "cancellation", cancelled=True),
    Cell(
        "cancel/timeout-after-accept",
        "Extend accepts half of the batches of a cancelled job and never answers, and fails a fifth of its other calls",
        "accept_then_timeout=0.5,write_429=0.1,write_5xx=0.1",
        cancelled=True,
    ),
)
TOOL_CELLS = tuple(
    Cell(f"audit/{tool}", f"everyrun {tool}: kill -9 of the command, Kafka and Postgres while it runs", tool=tool)
    for tool in ("rebuild", "audit", "as-of", "archive")
)
ALL = (*MATRIX, *POINT_CELLS, *WORKER_CELLS, *PAIR_CELLS, *RETRY_CELLS, *CANCEL_CELLS, *TOOL_CELLS)


class NoSuchCellError(ValueError):
    """A pattern matches no cell."""


def select(patterns: str) -> list[Cell]:
    """Return the cells that match comma-separated patterns (``bridge/*,point/*``); all cells if there are none.

    Raises NoSuchCellError.
    """
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()] or ["*"]
    for pattern in wanted:
        if not any(fnmatchcase(cell.name, pattern) for cell in ALL):
            raise NoSuchCellError(f"no cell matches {pattern!r}; the cells are: {', '.join(cell.name for cell in ALL)}")
    return [cell for cell in ALL if any(fnmatchcase(cell.name, pattern) for pattern in wanted)]
