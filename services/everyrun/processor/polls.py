"""A whole poll as one Faust event: the stream machinery costs as much for a thousand records as for one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from faust.types import TP
from faust.types.transports import SchedulingStrategyT

from everyrun.log.batching import weighed
from everyrun.processor.fetching import size_of
from everyrun.projection.decode import LogRecord, Poll


class PollRecord:
    """Stands for all records of one partition in one poll: its offset is the last one's, its value is the list.

    Whoever acknowledges it acknowledges all before it: so polls of a partition must be acknowledged in order
    (:mod:`everyrun.processor.commits`), or an unfinished one would be lost.
    """

    def __init__(self, records: list[Any]) -> None:
        last = records[-1]
        self.value = records
        self.topic = last.topic
        self.partition = last.partition
        self.offset = last.offset
        self.timestamp = last.timestamp
        self.timestamp_type = last.timestamp_type
        self.headers: tuple[()] = ()
        self.key = None
        self.checksum = None
        self.serialized_key_size = -1
        self.serialized_value_size = -1


class WholePolls(SchedulingStrategyT):
    """Faust's ConsumerScheduler: one record a partition a poll, ``batches`` before the others."""

    def iterate(self, records: Mapping[TP, list[Any]]) -> Iterator[tuple[TP, Any]]:
        """The partitions' polls, the topics in the order of their names."""
        for tp in sorted(records):
            if records[tp]:
                yield tp, PollRecord(records[tp])


def transactions(events: Iterable[Any], most: int) -> Iterator[list[Any]]:
    """Cut events, the value of each a poll, into runs of at most so many bytes of values; one may be larger alone."""
    return weighed(events, lambda event: size_of(event.value), most)


def joined(values: Iterable[list[LogRecord]], prefix: str) -> list[Poll]:
    """Polls as ``apply`` takes them: those of one partition that follow each other made into one."""
    whole: dict[tuple[str, int], list[LogRecord]] = {}
    for records in values:
        first = records[0]
        whole.setdefault((first.topic.removeprefix(prefix), first.partition), []).extend(records)
    return [Poll(topic, partition, records) for (topic, partition), records in sorted(whole.items())]
