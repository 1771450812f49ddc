"""Faust's consumer with our reading and our committing: the group has come up to the last poll acknowledged."""

from __future__ import annotations

from typing import ClassVar

from faust.transport.drivers import aiokafka
from faust.types import TP

from everyrun.processor.fetching import BySize


class InOrder(aiokafka.Consumer):
    """Faust's consumer, for whoever acknowledges the records of each partition in order.

    Faust searches what was acknowledged for the first gap. A poll that is one record (:mod:`everyrun.processor.polls`)
    leaves a gap before each: Faust fills it with the offsets of a compacted topic, the poll's own among them, finds it
    twice, stops there, and so commits one poll of a partition a second at most, however many were acknowledged.
    In order there is nothing to search: below the last one all is done.
    """

    logger = aiokafka.logger

    def _new_consumer_thread(self) -> BySize:
        return BySize(self, loop=self.loop, beacon=self.beacon)

    def _new_offset(self, tp: TP) -> int | None:
        acknowledged = self._acked[tp]
        if not acknowledged:
            return None
        end: int = max(acknowledged) + 1
        acknowledged.clear()
        self._acked_index[tp].clear()
        return end

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Keep none: they would be kept for ever."""


class Transport(aiokafka.Transport):
    """Faust's transport with that consumer."""

    Consumer: ClassVar = InOrder
