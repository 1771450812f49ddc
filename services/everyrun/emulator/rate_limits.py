"""Limit the number of requests per second in each category (docs.extend.ai, general/rate-limits)."""

from __future__ import annotations

import time

from everyrun.emulator.validate import ApiProblem


class RateLimits:
    """One token bucket per category of requests. A bucket holds as many requests as are allowed in one second."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._left = {"get": rate, "write": rate, "run": rate}
        self._at = dict.fromkeys(self._left, time.monotonic())

    def take(self, category: str) -> None:
        """Let a request pass. Raises ApiProblem 429 with Retry-After if there were too many requests."""
        now = time.monotonic()
        self._left[category] = min(self._rate, self._left[category] + (now - self._at[category]) * self._rate)
        self._at[category] = now
        if self._left[category] < 1:
            raise ApiProblem(429, "RATE_LIMIT_EXCEEDED", "too many requests", {"retry-after": "1"})
        self._left[category] -= 1
