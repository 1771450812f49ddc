"""The end offsets that Kafka returns."""

from __future__ import annotations

import pytest
from aiokafka.errors import KafkaError

from everyrun.log import topics
from everyrun.log.cloudevents import Record
from everyrun.log.producer import Producer
from everyrun.log.reading import end_offsets
from everyrun.settings import Settings

pytestmark = pytest.mark.stack


async def test_every_partition_has_its_end(settings: Settings) -> None:
    numbers = {topic.name: topic.partitions for topic in topics.declared()}
    empty = await end_offsets(settings, ("batches", "runs"))
    assert empty == {(name, n): 0 for name in ("batches", "runs") for n in range(numbers[name])}
    async with Producer(settings) as producer:
        await producer.append([Record("runs", b"one key", b"%d" % n, []) for n in range(3)])
    ends = await end_offsets(settings, ("batches", "runs"))
    assert sorted(ends.values())[-2:] == [0, 3]
    assert ends.keys() == empty.keys()


async def test_a_missing_topic_is_an_error_not_an_empty_topic(settings: Settings) -> None:
    with pytest.raises(KafkaError, match="nowhere"):
        await end_offsets(settings.model_copy(update={"topic_prefix": "nowhere."}), ("runs",))
