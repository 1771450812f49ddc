"""Consume results from Kafka: keep the newest state of each input, and ignore repeated and late events.

    python examples/consumer.py HOST:PORT [SUBMISSION_ID]

With a submission id, it ends once it has printed every input of the submission; without one, at Ctrl-C.

It keeps its state in memory, so it reads from the beginning each time. The topic is compacted and has the newest state
of every input. A consumer that keeps its state in a database should set a group_id and enable_auto_commit=False, and
commit after its own work is done.
"""

import asyncio
import json
import sys

from aiokafka import AIOKafkaConsumer


async def main(bootstrap: str, submission_id: str | None) -> None:
    """Print each input when it is settled."""
    newest: dict[str, str] = {}
    settled: set[str] = set()
    submission_settled = None
    consumer = AIOKafkaConsumer(
        "everyrun.results", "everyrun.reports", bootstrap_servers=bootstrap, auto_offset_reset="earliest"
    )
    async with consumer:
        async for record in consumer:
            event = json.loads(record.value)
            if submission_id and event["submission_id"] != submission_id:
                continue
            if event["type"] == "submission-settled":
                submission_settled = event
            # The state with the greatest version is the newest; ignore older ones.
            elif "version" in event and event["version"] > newest.get(event["input_id"], ""):
                newest[event["input_id"]] = event["version"]
                if event["type"] == "result-settled":
                    settled.add(event["input_id"])
                    print(f"{event['input_id']}: {event['status']}", flush=True)
                else:
                    settled.discard(event["input_id"])
            # Both topics are read concurrently: the end of the submission may be read before its last results.
            if submission_id and submission_settled and len(settled) == submission_settled["expected"]:
                print(f"{submission_id}: {submission_settled['counts']}")
                return


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
