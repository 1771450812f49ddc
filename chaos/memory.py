"""Tell if the resident memory of a service grows. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

#: A process is warm this many seconds after its start; the memory that it takes before is not growth.
WARM = 120.0
#: Minimum seconds of warm samples for a slope.
_ENOUGH = 60.0
_BARS = "▁▂▃▄▅▆▇█"


class Sample(NamedTuple):
    """The resident megabytes of a process, ``at`` seconds after the soak began, ``age`` seconds after its start."""

    at: float
    service: str
    pid: int
    age: float
    resident: float


def slope(samples: Iterable[Sample]) -> float | None:
    """Return how many megabytes a minute a warm service grows, or None if there are too few samples.

    It is a linear fit with one slope for all processes of the service, and a separate mean for each.
    """
    lives: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.age >= WARM:
            lives[sample.pid].append(sample)
    above = below = lasted = 0.0
    for life in lives.values():
        middle = sum(s.at for s in life) / len(life)
        mean = sum(s.resident for s in life) / len(life)
        above += sum((s.at - middle) * (s.resident - mean) for s in life)
        below += sum((s.at - middle) ** 2 for s in life)
        lasted += life[-1].at - life[0].at
    return 60 * above / below if lasted >= _ENOUGH else None


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """Draw values as a row of at most ``width`` bars; a bar is the mean of several values if there are more."""
    if not values:
        return ""
    width = min(width, len(values))
    edges = [round(k * len(values) / width) for k in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    return "".join(_BARS[round((mean - low) / (high - low) * 7) if high > low else 0] for mean in means)
