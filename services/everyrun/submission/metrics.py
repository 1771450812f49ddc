"""What the submission service shows of the queue, as Prometheus reads it at ``/metrics``."""

from __future__ import annotations

import asyncpg
from prometheus_client import CollectorRegistry, Gauge

from everyrun.store.sql import beside
from everyrun.submission.api.request_body import Uploads

_sql = beside(__file__, "queue.sql")
STATES = ("waiting", "sending", "in_doubt", "held")


class Metrics:
    """The queue's metrics, in a registry of their own; ``look`` brings them up to date."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        #: Held chunks wait for a person; in_doubt for evidence.
        self.chunks = Gauge(
            "everyrun_queue_chunks",
            "Chunks of the whole queue that are not sent or refused yet, by state: take max over processes, not sum.",
            ["state"],
            registry=self.registry,
        )
        self.paused = Gauge(
            "everyrun_queue_paused_workflows", "Workflows that nothing is sent for.", registry=self.registry
        )

    def count_uploads(self, uploads: Uploads) -> None:
        """Show the uploads that this process has under way."""
        number = Gauge("everyrun_uploads", "Uploads under way in this process.", registry=self.registry)
        number.set_function(lambda: len(uploads))
        size = Gauge(
            "everyrun_upload_bytes", "Bytes of the uploads under way, in temporary files.", registry=self.registry
        )
        size.set_function(lambda: uploads.size)

    async def look(self, pool: asyncpg.Pool) -> None:
        """Count. Raises asyncpg's errors."""
        rows = await pool.fetch(_sql["chunks_by_state"])
        counted = {row["state"]: row["chunks"] for row in rows}
        for state in STATES:
            self.chunks.labels(state).set(counted.get(state, 0))
        self.paused.set(await pool.fetchval(_sql["count_paused_workflows"]))
