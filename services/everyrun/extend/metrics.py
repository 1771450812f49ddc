"""Requests to Extend, as Prometheus reads them at ``/metrics`` of whoever calls it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector


class _Sent(Collector):
    def __init__(self, sent: Mapping[str, int]) -> None:
        self._sent = sent

    def collect(self) -> Iterator[CounterMetricFamily]:
        """One sample a category."""
        family = CounterMetricFamily(
            "everyrun_extend_requests", "Requests that this process sent to Extend, by category.", labels=["category"]
        )
        for category, number in self._sent.items():
            family.add_metric([category], number)
        yield family


def count_requests(registry: CollectorRegistry, sent: Mapping[str, int]) -> None:
    """Show the client's ``sent``: requests by category (GET, WRITE, RUN), each with a limit of its own at Extend."""
    registry.register(_Sent(sent))
