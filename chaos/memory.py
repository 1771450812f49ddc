"""Whether a service's resident memory grows. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

#: A process is warm so many seconds after its start; what it takes until then is not growth.
WARM = 120.0
#: Less than so many seconds of warm samples say nothing.
_ENOUGH = 60.0
_BARS = "▁▂▃▄▅▆▇█"


class Sample(NamedTuple):
    """A process's resident megabytes, so many seconds after the soak's beginning, ``age`` after its own start."""

    at: float
    service: str
    pid: int
    age: float
    resident: float


def slope(samples: Iterable[Sample]) -> float | None:
    """Megabytes a minute by which a service grows while warm: a linear fit, each process at a level of its own.

    None where there are too few samples to say.
    """
    lives: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.age >= WARM:
            lives[sample.pid].append(sample)
    above = below = lasted = 0.0
    for life in lives.values():
        middle = sum(s.at for s in life) / len(life)
        level = sum(s.resident for s in life) / len(life)
        above += sum((s.at - middle) * (s.resident - level) for s in life)
        below += sum((s.at - middle) ** 2 for s in life)
        lasted += life[-1].at - life[0].at
    return 60 * above / below if lasted >= _ENOUGH else None


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """The values as a row of bars, from the least to the greatest; of many, each bar is a mean."""
    if not values:
        return ""
    width = min(width, len(values))
    edges = [round(k * len(values) / width) for k in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    return "".join(_BARS[round((mean - low) / (high - low) * 7) if high > low else 0] for mean in means)
