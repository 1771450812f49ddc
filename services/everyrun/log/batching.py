"""Things in order, cut into runs that are not too heavy. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def weighed(things: Iterable[T], weight: Callable[[T], int], most: int, count: int | None = None) -> Iterator[list[T]]:
    """Runs of at most ``count`` things and together at most ``most``; one that is heavier is a run by itself."""
    run: list[T] = []
    total = 0
    for thing in things:
        heavy = weight(thing)
        if run and (len(run) == count or total + heavy > most):
            yield run
            run, total = [], 0
        run.append(thing)
        total += heavy
    if run:
        yield run
