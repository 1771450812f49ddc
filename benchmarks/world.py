"""Make batches and runs for the processor, as they lie in the log."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec

from everyrun.extend import reserved
from everyrun.log import events
from everyrun.log.cloudevents import Record, record, timestamp
from everyrun.submission.chunks import chunk_id

SUBMISSION = "sub_bench"
INSTALLATION = "inst_bench"


def batches(count: int, inputs: int) -> Iterator[Record]:
    """Yield the events of the submission and of its batches, each of ``inputs`` inputs."""
    now = timestamp(time.time())
    sent = {"submission_id": SUBMISSION, "workflow_id": "workflow_1", "workflow_version": None, "priority": 90}
    accepted = events.SubmissionAccepted(
        **sent,
        expected=count * inputs,
        batches=count,
        idempotency_key=SUBMISSION,
        content_hash="00" * 32,
        created_at=now,
    )
    yield record("batches", accepted, key=SUBMISSION, id=SUBMISSION, source="/bench", time=now)
    for number in range(count):
        given = [
            events.Input(
                input_id=f"{SUBMISSION}:invoice-{number * inputs + n:07d}",
                external_id=f"invoice-{number * inputs + n:07d}",
                position=number * inputs + n + 1,
                file={"url": f"https://files.example.com/invoices/{n:07d}.pdf", "name": f"{n}.pdf"},
                metadata={"customer": f"c-{n % 97}", "row": n},
            )
            for n in range(inputs)
        ]
        chunk = chunk_id(SUBMISSION, number + 1)
        event = events.BatchSubmitted(
            **sent,
            chunk=chunk,
            attempt=1,
            batch_id=f"batch_{number:05d}",
            evidence="answer",
            submitted_at=now,
            inputs=given,
        )
        yield record("batches", event, key=event.batch_id, id=f"{chunk}/1/batch-submitted", source="/bench", time=now)


def run(number: int, inputs: int, size: int) -> bytes:
    """Return the run of an input, with about ``size`` bytes."""
    batch, n = divmod(number, inputs)
    key = reserved.Reserved(
        INSTALLATION, f"{SUBMISSION}:invoice-{number:07d}", chunk_id(SUBMISSION, batch + 1), 1, number + 1
    )
    head = {
        "object": "workflow_run",
        "id": f"workflow_run_{number:020d}",
        "status": "PROCESSED",
        "batchId": f"batch_{batch:05d}",
        "metadata": reserved.mark({"customer": f"c-{n % 97}", "row": n}, key),
        "failureReason": None,
        "endTime": timestamp(time.time()),
        "usage": {"credits": 2.0},
        "stepRuns": [],
    }
    rest = [{"line": k, "description": "Copy paper A4", "amount": k * 1.17} for k in range(max(size - 560, 0) // 60)]
    return msgspec.json.encode({**head, "items": rest})


def runs(count: int, inputs: int, size: int) -> Iterator[Record]:
    """Yield a run-observed event for each input, one of each batch in turn."""
    now = timestamp(time.time())
    batch_count = count // inputs
    for k in range(count):
        number = (k % batch_count) * inputs + k // batch_count
        event = events.RunObserved("webhook", msgspec.Raw(run(number, inputs, size)), "workflow_run.completed")
        yield record(
            "runs", event, key=f"batch_{number // inputs:05d}", id=f"event_{number}", source="/bench", time=now
        )
