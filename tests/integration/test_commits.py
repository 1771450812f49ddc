"""Acknowledged polls are committed at once, so a worker that takes over reads little again."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from everyrun.log.producer import Producer
from everyrun.log.reading import end_offsets
from everyrun.settings import Settings
from tests.conftest import eventually
from tests.integration.test_graceful import runs_in
from tests.records import run_event

pytestmark = pytest.mark.stack

_POLLS = 40


async def test_many_polls_a_second_are_committed_within_seconds(service: Any, settings: Settings) -> None:
    await service("processor").ready()
    async with Producer(settings) as producer:
        for number in range(_POLLS):
            runs = (f"run_{number}_{k}" for k in range(3))
            await producer.append([run_event(run, "batch", "PROCESSED", 1, key=None) for run in runs])

            # So that each append is a poll of its own, far more than one a second.
            async def applied(count: int = 3 * (number + 1)) -> bool:
                return await runs_in(settings) == count

            await eventually(applied, "the runs are in the tables", 60)

    async def committed() -> bool:
        admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
        await admin.start()
        try:
            found = await admin.list_consumer_group_offsets(settings.topic_prefix + "processor")
        finally:
            await admin.close()
        ends = {place: end for place, end in (await end_offsets(settings, ["runs"])).items() if end}
        reached = {(tp.topic.removeprefix(settings.topic_prefix), tp.partition): m.offset for tp, m in found.items()}
        return all(reached.get(place) == end for place, end in ends.items())

    await eventually(committed, "the group's offsets are at the end of the log", 8)
