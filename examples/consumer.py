"""A plain Kafka consumer of the results: keeps the newest state of each input, whatever comes twice or late.

    python examples/consumer.py HOST:PORT [SUBMISSION_ID]

Ends when the submission is settled; without one it goes on until Ctrl-C.
"""

import asyncio
import json
import sys

from aiokafka import AIOKafkaConsumer


async def main(bootstrap: str, submission_id: str | None) -> None:
    """Print each input as it is settled."""
    newest: dict[str, str] = {}
    consumer = AIOKafkaConsumer(
        "everyrun.results",
        "everyrun.reports",
        bootstrap_servers=bootstrap,
        group_id="my-results",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    async with consumer:
        async for record in consumer:
            event = json.loads(record.value)
            if submission_id and event["submission_id"] != submission_id:
                continue
            if event["type"] == "submission-settled":
                print(f"{event['submission_id']}: {event['counts']}")
                if submission_id:
                    return
            # Of two states of an input the one with the greater version is the newer; an older one is passed over.
            elif newest.get(event.get("input_id", ""), "") < event.get("version", ""):
                newest[event["input_id"]] = event["version"]
                if event["type"] == "result-settled":
                    print(f"{event['input_id']}: {event['status']}")
            # Only now may this record be forgotten: your own work is done.
            await consumer.commit()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
