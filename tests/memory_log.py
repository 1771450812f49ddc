"""A log in memory, for tests without Kafka."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from everyrun.log.cloudevents import Record, header


class MemoryLog:
    """Keeps the records that are appended. While ``error`` is set, appending raises it."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.records: list[Record] = []
        self.error = error

    async def append(self, records: Iterable[Record]) -> None:
        if self.error is not None:
            raise self.error
        self.records += records

    def newest(self, topic: str) -> dict[bytes, dict[str, Any]]:
        """Return the last event of each key."""
        return {record.key: msgspec.json.decode(record.value) for record in self.records if record.topic == topic}

    def subjects(self) -> list[str]:
        """Return the CloudEvents subject of each record, sorted."""
        return sorted(header(record.headers, "ce_subject") for record in self.records)
