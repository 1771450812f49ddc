"""What the processor counts, as Prometheus reads it at ``/metrics``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class Metrics:
    """The processor's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        #: Over a while at a load it should not grow: what is in the log and not in the tables yet.
        self.lag = Gauge(
            "everyrun_processor_lag_records",
            "Records of this worker's partitions that are not acknowledged yet.",
            ["topic"],
            registry=self.registry,
        )
        #: With a lag and no commit for EVERYRUN_STALLED_AFTER the worker ends itself.
        self.last_commit = Gauge(
            "everyrun_processor_last_commit_timestamp_seconds",
            "When records were last seen to be acknowledged, Unix time; looked at every five seconds.",
            registry=self.registry,
        )
        self.records = Counter(
            "everyrun_processor_records", "Records acknowledged, by topic.", ["topic"], registry=self.registry
        )
