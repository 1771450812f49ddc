"""Cutting a chunk that Extend refused, until what it refuses is alone. Pure.

See docs/adr/0012-a-refused-chunk-is-cut.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from everyrun.log.keys import PART

#: ``inputs[3]``, ``inputs.3`` or ``inputs/3``, counted from 0 as Extend's own request is.
_PLACE = re.compile(r"\binputs?(?:\[(\d{1,6})\]|[./](\d{1,6})(?!\d))")
_WORD = re.compile(r"[A-Za-z0-9_-]+")


def named(message: str, files: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Return the places, from 0, of the inputs that a message names: by their place, or by the id of their file."""
    words = set(_WORD.findall(message))
    found = {int(match[1] or match[2]) for match in _PLACE.finditer(message)}
    found |= {place for place, file in enumerate(files) if file.get("id") in words}
    return tuple(sorted(place for place in found if place < len(files)))


def cut(size: int, named: Sequence[int] = ()) -> tuple[tuple[int, int], ...]:
    """Return the parts of a chunk of ``size`` inputs, at least two, as first and last place, from 0.

    An input that is named is alone in its part, so that it is refused only if a call of it alone is. No part of the
    others has more than half of the inputs: so a name that is wrong costs calls, but not many.
    """
    if size < 2:
        raise ValueError("a chunk of one input cannot be cut")
    parts: list[tuple[int, int]] = []
    first = 0
    for place in (*sorted({place for place in named if 0 <= place < size}), size):
        if first < place:
            parts += _halved(first, place - 1, -(-size // 2))
        if place < size:
            parts.append((place, place))
        first = place + 1
    return tuple(parts)


def _halved(first: int, last: int, most: int) -> list[tuple[int, int]]:
    """A range in as few parts of about one size as have no more than ``most`` each."""
    count = last - first + 1
    parts = -(-count // most)
    cuts = [first - (-count * n // parts) for n in range(parts + 1)]
    return [(start, end - 1) for start, end in pairwise(cuts)]


def part_id(chunk: str, number: int) -> str:
    """Return the id of a chunk's part, by its number from 1. Its lineage is the chunk that was first cut."""
    return f"{chunk}{PART}{number}"
