"""``choose``: which of an input's runs stands for it. A function of the set of them, not of the order of arrival.

Every candidate has a *version*, text that sorts; the greatest stands. So the version of a row only ever grows, in
whatever order the events come, and a consumer that keeps the greatest version of each input holds the newest state.
"""

from __future__ import annotations

from collections.abc import Iterable

_REFUSED, _SUBMITTED, _OPEN, _FINAL = "0", "1", "2", "3"
#: Sorts after every hexadecimal digit.
_END = "g"
_COMPLEMENT = bytes(range(255, -1, -1))


def _smallest_first(identifier: str) -> str:
    # The greatest version stands and the smallest id is to stand: so the complement of its bytes, and an end mark
    # that puts a prefix of a longer id after it.
    return identifier.encode("utf-8", "surrogatepass").translate(_COMPLEMENT).hex() + _END


def version_of_run(run_id: str, final: bool, order: str) -> str:
    """The version of an input that this run stands for: final before open, then the smallest run id, then the order."""
    return f"{_FINAL if final else _OPEN}{_smallest_first(run_id)}.{order}"


def version_of_attempt(chunk: str, attempt: int, refused: bool) -> str:
    """The version of an input no run of which was seen: an attempt that was taken before one that was refused."""
    return f"{_REFUSED if refused else _SUBMITTED}{_smallest_first(f'{chunk}/{attempt:06d}')}."


def order_in(version: str) -> str:
    """The run's own order, as :func:`everyrun.projection.rules.merge.order_of` made it, out of a version."""
    return version.partition(".")[2]


def choose(versions: Iterable[str]) -> str:
    """The version that stands. Raises ValueError where there is none to choose from."""
    return max(versions)
