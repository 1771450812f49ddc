"""Prometheus metrics of the queue and of uploads, at ``/metrics``."""

from __future__ import annotations

import asyncpg
from prometheus_client import CollectorRegistry, Gauge

from everyrun.store.sql import beside
from everyrun.submission.api.request_body import Uploads

_sql = beside(__file__, "queue.sql")
STATES = ("waiting", "sending", "in_doubt", "held")


class Metrics:
    """The metrics of the submission service, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.chunks = Gauge(
            "everyrun_queue_chunks",
            "Unfinished chunks by state. Each process counts the whole queue, so use max over processes, not sum.",
            ["state"],
            registry=self.registry,
        )
        self.paused = Gauge("everyrun_queue_paused_workflows", "Paused workflows.", registry=self.registry)

    def add_uploads(self, uploads: Uploads) -> None:
        """Add the metrics of the uploads in progress in this process."""
        number = Gauge("everyrun_uploads", "Uploads in progress in this process.", registry=self.registry)
        number.set_function(lambda: len(uploads))
        size = Gauge(
            "everyrun_upload_bytes", "Bytes in the temporary files of the uploads in progress.", registry=self.registry
        )
        size.set_function(lambda: uploads.size)

    async def update(self, pool: asyncpg.Pool) -> None:
        """Count chunks and paused workflows. Raises asyncpg's errors."""
        rows = await pool.fetch(_sql["chunks_by_state"])
        counted = {row["state"]: row["chunks"] for row in rows}
        for state in STATES:
            self.chunks.labels(state).set(counted.get(state, 0))
        self.paused.set(await pool.fetchval(_sql["count_paused_workflows"]))
