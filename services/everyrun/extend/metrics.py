"""Export the number of requests to Extend as a metric."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector


class _Sent(Collector):
    def __init__(self, sent: Mapping[str, int]) -> None:
        self._sent = sent

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield one sample per category."""
        family = CounterMetricFamily(
            "everyrun_extend_requests", "Requests that this process sent to Extend, by category.", labels=["category"]
        )
        for category, number in self._sent.items():
            family.add_metric([category], number)
        yield family


def count_requests(registry: CollectorRegistry, sent: Mapping[str, int]) -> None:
    """Export ``sent``, a client's requests by category (GET, WRITE, RUN). Extend limits each category separately."""
    registry.register(_Sent(sent))
