"""Prometheus metrics of the notifier, at ``/metrics``."""

from __future__ import annotations

import asyncpg
from prometheus_client import CollectorRegistry, Counter, Gauge

from everyrun.store.sql import beside

_sql = beside(__file__, "notifier.sql")


class Metrics:
    """The metrics of the notifier, in their own registry. The label ``receiver`` is the receiver's id."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "everyrun_notifier_requests",
            "Requests by receiver and outcome: delivered; waiting (failed, and retried later); given_up.",
            ["receiver", "outcome"],
            registry=self.registry,
        )
        self._waiting = Gauge(
            "everyrun_notifier_waiting",
            "Deliveries that wait. Each process counts the whole table, so use max over processes, not sum.",
            ["receiver"],
            registry=self.registry,
        )
        self._oldest = Gauge(
            "everyrun_notifier_oldest_waiting_seconds",
            "Age of the oldest delivery that waits. Each process reads the whole table, so use max, not sum.",
            ["receiver"],
            registry=self.registry,
        )

    def count(self, receiver_id: str, outcome: str) -> None:
        """Count a request that has ended."""
        self._requests.labels(receiver_id, outcome).inc()

    def count_given_up(self, receiver_id: str, number: int) -> None:
        """Count deliveries that were given up without a further request."""
        self._requests.labels(receiver_id, "given_up").inc(number)

    async def update(self, pool: asyncpg.Pool) -> None:
        """Count the deliveries that wait. Raises asyncpg's errors."""
        rows = await pool.fetch(_sql["waiting"])
        for gauge in (self._waiting, self._oldest):
            gauge.clear()
        for row in rows:
            self._waiting.labels(row["receiver_id"]).set(row["waiting"])
            self._oldest.labels(row["receiver_id"]).set(row["oldest"])
