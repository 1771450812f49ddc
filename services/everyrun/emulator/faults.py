"""The faults the emulator can be asked for, and when each of them strikes: a function of the seed alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

from everyrun.errors import Invalid

#: Name: what it does. Rates are between 0 and 1, times in seconds.
FAULTS = {
    "duplicate": "rate of webhooks that are sent twice",
    "copies": "times that each webhook is sent once more",
    "drop": "rate of webhooks that are never sent",
    "delay": "seconds that a webhook is held back, up to",
    "reorder": "rate of webhooks that later ones overtake",
    "corrupt": "rate of webhooks whose body is altered after signing, at the first attempt",
    "late": "rate of webhooks that come only after the retry window",
    "url_expired": "rate of signed links that answer 403",
    "submit_429": "rate of batch calls refused with 429",
    "submit_5xx": "rate of batch calls that fail with 503 before they are taken",
    "accept_then_timeout": "rate of batches that are taken but never answered",
    "get_429": "rate of GETs refused with 429",
    "get_5xx": "rate of GETs that fail with 500",
    "slow": "seconds that an answer is held back, up to",
    "garbage": "rate of answers that are 200 but not JSON (a batch call: before it is taken)",
    "list_lag": "seconds until a run is listed, up to",
    "skew": "seconds by which the clock that signs webhooks, dates answers and dates runs is ahead (negative: behind)",
    "fail": "rate of runs that end FAILED",
    "review": "rate of runs that stop at NEEDS_REVIEW",
}
TIMES = frozenset({"delay", "slow", "list_lag", "skew"})
COUNTS = frozenset({"copies"})
MOST_COPIES = 100
DEFAULTS = {"duplicate": 0.1, "reorder": 0.2, "drop": 0.02, "submit_429": 0.05, "get_429": 0.02}


class FaultsError(Invalid, ValueError):
    """A list of faults cannot be read; the text names the one that is wrong."""


def parse_faults(text: str) -> dict[str, float]:
    """``default``, ``none`` or ``NAME=VALUE,NAME=VALUE``; a list replaces the defaults. Raises FaultsError."""
    if text in ("", "none"):
        return {}
    if text == "default":
        return dict(DEFAULTS)
    faults = {}
    for item in text.split(","):
        name, _, value = item.strip().partition("=")
        if name not in FAULTS:
            raise FaultsError(f"unknown fault {name!r}; there are: {', '.join(FAULTS)}")
        try:
            number = float(value)
        except ValueError:
            raise FaultsError(f"{name}: {value!r} is not a number; write {name}=0.1") from None
        if name in COUNTS and not (number.is_integer() and 0 <= number <= MOST_COPIES):
            raise FaultsError(f"{name} is a whole number up to {MOST_COPIES}, not {value}")
        if name not in TIMES | COUNTS and not 0 <= number <= 1:
            raise FaultsError(f"{name} is a rate between 0 and 1, not {value}")
        if not math.isfinite(number) or (number < 0 and name != "skew"):
            raise FaultsError(f"{name} is a number of seconds, not {value}")
        faults[name] = number
    return faults


class Dice:
    """Chance by hash: the same seed, name and subject give the same number, in whatever order they are asked."""

    def __init__(self, seed: int, faults: Mapping[str, float]) -> None:
        self._key = str(seed).encode()
        self.faults = dict(faults)

    def change(self, faults: Mapping[str, float]) -> None:
        """From now on these faults, and no others."""
        self.faults = dict(faults)

    def number(self, name: str, subject: str) -> float:
        """A number in [0, 1)."""
        digest = hashlib.blake2b(f"{name}/{subject}".encode(), key=self._key, digest_size=7).digest()
        return int.from_bytes(digest) / (1 << 56)

    def strikes(self, name: str, subject: str) -> bool:
        """Whether the fault strikes the subject."""
        rate = self.faults.get(name, 0.0)
        return rate > 0 and self.number(name, subject) < rate

    def seconds(self, name: str, subject: str) -> float:
        """For how long the fault holds the subject up."""
        most = self.faults.get(name, 0.0)
        return most * self.number(name, subject) if most else 0.0

    @property
    def ahead(self) -> float:
        """By how many seconds the clock is ahead: negative where it is behind."""
        return self.faults.get("skew", 0.0)

    def count(self, name: str) -> int:
        """How often the fault strikes every subject."""
        return int(self.faults.get(name, 0.0))
