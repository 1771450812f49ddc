"""A plain Kafka consumer of the results: keeps the newest state of each input, whatever comes twice or late.

    python examples/consumer.py HOST:PORT [SUBMISSION_ID]

Ends when every input of the submission is settled and has been told of; without one it goes on until Ctrl-C.

What it knows is in memory, so it reads from the beginning each time: the topic is compacted, and holds the newest
state of every input. A consumer that keeps what it knows in a database gives a group_id, sets
enable_auto_commit=False, and commits after its own work is done.
"""

import asyncio
import json
import sys

from aiokafka import AIOKafkaConsumer


async def main(bootstrap: str, submission_id: str | None) -> None:
    """Print each input as it is settled."""
    newest: dict[str, str] = {}
    settled: set[str] = set()
    whole = None
    consumer = AIOKafkaConsumer(
        "everyrun.results", "everyrun.reports", bootstrap_servers=bootstrap, auto_offset_reset="earliest"
    )
    async with consumer:
        async for record in consumer:
            event = json.loads(record.value)
            if submission_id and event["submission_id"] != submission_id:
                continue
            if event["type"] == "submission-settled":
                whole = event
            # Of two states of an input the one with the greater version is the newer; an older one is passed over.
            elif "version" in event and event["version"] > newest.get(event["input_id"], ""):
                newest[event["input_id"]] = event["version"]
                if event["type"] == "result-settled":
                    settled.add(event["input_id"])
                    print(f"{event['input_id']}: {event['status']}", flush=True)
                else:
                    settled.discard(event["input_id"])
            # Topics are read side by side: the end of the submission may be read before its last results.
            if submission_id and whole and len(settled) == whole["expected"]:
                print(f"{submission_id}: {whole['counts']}")
                return


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
