"""Define the emulator's faults, and decide when each strikes. Only the seed decides this, so tests can repeat it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

from everyrun.errors import Invalid

#: The name of each fault, and what its value means. A rate is the share of cases that the fault strikes, from 0 to 1.
FAULTS = {
    "duplicate": "rate of webhooks that are sent twice",
    "copies": "number of extra copies of each webhook",
    "drop": "rate of webhooks that are never sent",
    "delay": "maximum delay of a webhook in seconds",
    "reorder": "rate of webhooks that later webhooks overtake",
    "corrupt": "rate of webhooks whose body is corrupted after signing, at the first attempt only",
    "late": "rate of webhooks that are sent only after all retries would have ended",
    "url_expired": "rate of signed links that answer 403",
    "submit_429": "rate of batch calls refused with 429",
    "submit_5xx": "rate of batch calls that fail with 503 and are not accepted",
    "accept_then_timeout": "rate of batches that are accepted but never answered",
    "get_429": "rate of GETs refused with 429",
    "get_5xx": "rate of GETs that fail with 500",
    "write_429": "rate of other requests, such as cancellations of runs, refused with 429",
    "write_5xx": "rate of other requests that fail with 500",
    "slow": "maximum delay of an answer in seconds",
    "garbage": "rate of calls answered with 200 and HTML instead of JSON (a batch call is then not accepted)",
    "list_lag": "maximum time in seconds from the creation of a run until lists show it",
    "skew": "seconds by which Extend's clock is ahead (negative: behind): in signatures, Date headers, times of runs",
    "fail": "rate of runs that end FAILED",
    "review": "rate of runs that stop at NEEDS_REVIEW",
}
TIMES = frozenset({"delay", "slow", "list_lag", "skew"})
COUNTS = frozenset({"copies"})
MAX_COPIES = 100
DEFAULTS = {"duplicate": 0.1, "reorder": 0.2, "drop": 0.02, "submit_429": 0.05, "get_429": 0.02}


class InvalidFaultsError(Invalid, ValueError):
    """A list of faults cannot be parsed; the message names the wrong fault."""


def parse_faults(text: str) -> dict[str, float]:
    """Parse ``default``, ``none`` or ``NAME=VALUE,...``. Faults that the text does not name never strike.

    Raises InvalidFaultsError.
    """
    if text in ("", "none"):
        return {}
    if text == "default":
        return dict(DEFAULTS)
    faults = {}
    for item in text.split(","):
        name, _, value = item.strip().partition("=")
        if name not in FAULTS:
            raise InvalidFaultsError(f"unknown fault {name!r}; the faults are: {', '.join(FAULTS)}")
        try:
            number = float(value)
        except ValueError:
            raise InvalidFaultsError(f"{name}: {value!r} is not a number; write {name}=0.1") from None
        if name in COUNTS and not (number.is_integer() and 0 <= number <= MAX_COPIES):
            raise InvalidFaultsError(f"{name}: must be a whole number up to {MAX_COPIES}, not {value}")
        if name not in TIMES | COUNTS and not 0 <= number <= 1:
            raise InvalidFaultsError(f"{name}: must be a rate between 0 and 1, not {value}")
        if not math.isfinite(number) or (number < 0 and name != "skew"):
            raise InvalidFaultsError(f"{name}: must be a number of seconds, not {value}")
        faults[name] = number
    return faults


class Dice:
    """Makes random choices with a hash, so that the order of calls does not matter.

    A ``subject`` names what may be struck, for example the id of an event. A choice depends only on the seed, the name
    of the choice and the subject.
    """

    def __init__(self, seed: int, faults: Mapping[str, float]) -> None:
        self._key = str(seed).encode()
        self.faults = dict(faults)

    def change(self, faults: Mapping[str, float]) -> None:
        """Replace the faults."""
        self.faults = dict(faults)

    def number(self, name: str, subject: str) -> float:
        """Return the number in [0, 1) that belongs to a choice and a subject."""
        digest = hashlib.blake2b(f"{name}/{subject}".encode(), key=self._key, digest_size=7).digest()
        return int.from_bytes(digest) / (1 << 56)

    def strikes(self, name: str, subject: str) -> bool:
        """Return True if the fault strikes the subject."""
        rate = self.faults.get(name, 0.0)
        return rate > 0 and self.number(name, subject) < rate

    def seconds(self, name: str, subject: str) -> float:
        """Return for how many seconds the fault delays the subject."""
        longest = self.faults.get(name, 0.0)
        return longest * self.number(name, subject) if longest else 0.0

    @property
    def clock_offset(self) -> float:
        """Seconds by which Extend's clock is ahead of this machine's; negative if it is behind."""
        return self.faults.get("skew", 0.0)

    def count(self, name: str) -> int:
        """Return the value of a fault whose value is a number of times, such as ``copies``."""
        return int(self.faults.get(name, 0.0))
