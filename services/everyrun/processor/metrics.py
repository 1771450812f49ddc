"""The processor's metrics, which Prometheus reads at ``/metrics``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class Metrics:
    """The metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        #: Records that this worker has not acknowledged yet. Under a steady load, the number should not grow.
        self.lag = Gauge(
            "everyrun_processor_lag_records",
            "Records of this worker's partitions that are not acknowledged yet.",
            ["topic"],
            registry=self.registry,
        )
        #: If records wait and none is acknowledged for EVERYRUN_STALLED_AFTER seconds, the worker ends itself.
        self.last_commit = Gauge(
            "everyrun_processor_last_commit_timestamp_seconds",
            "When records were last acknowledged, Unix time; updated every five seconds.",
            registry=self.registry,
        )
        self.records = Counter(
            "everyrun_processor_records", "Records acknowledged, by topic.", ["topic"], registry=self.registry
        )
