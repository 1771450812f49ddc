"""Random histories for matching: chunks sent more than once, runs whose metadata change, observations without batchId.

Unlike :func:`tests.records.a_world`, which is plausible, a history may do whatever Extend's contract does not exclude.
The contract does exclude that a run belongs to two batches, although an observation may leave the batchId out.
"""

from __future__ import annotations

import random
from typing import Any

from everyrun.extend.reserved import Reserved
from everyrun.log import events
from everyrun.log.cloudevents import Record, record
from everyrun.log.keys import retry_chunk
from tests.records import INSTALLATION, a_registered_batch, an_input, at, batch_event, retried, run_event

_INPUTS = 2
#: Kinds of reserved keys that runs carry, and their weights in histories with few and with many changed keys.
_KEYS = ("own", "none", "neighbour", "stranger", "other chunk", "other attempt", "other installation")
_OFTEN_OWN, _OFTEN_CHANGED = (80, 6, 4, 3, 3, 2, 2), (40, 25, 15, 5, 8, 4, 3)
_STATUSES = ("PENDING", "PROCESSING", "NEEDS_REVIEW", "PROCESSED", "FAILED", "CANCELLED")


def a_history(chance: random.Random) -> list[Record]:
    """Return the records of a history, in the order in which they were written."""
    # The number decides which partitions the records lie in.
    submission = f"sub_{chance.randint(100, 999)}"
    chunks = [f"{submission}.c{number:05d}" for number in range(1, chance.randint(2, 3) + 1)]
    accepted = events.SubmissionAccepted(
        submission_id=submission,
        workflow_id="workflow_1",
        workflow_version=None,
        priority=90,
        expected=len(chunks) * _INPUTS,
        batches=len(chunks),
        idempotency_key=submission,
        content_hash="00" * 32,
        created_at=at(0),
    )
    records = [record("batches", accepted, key=submission, id=submission, source="/test", time=at(0))]
    given = {
        chunk: [an_input(submission, number * _INPUTS + n + 1) for n in range(_INPUTS)]
        for number, chunk in enumerate(chunks)
    }
    for number, chunk in enumerate(chunks):
        records += _chunk(chance, submission, chunk, number, given)
        for retry in range(1, chance.choice((0, 0, 1, 2)) + 1):
            again = retry_chunk(chunk, retry)
            given[again] = sorted(chance.sample(given[chunk], chance.randint(1, _INPUTS)), key=lambda i: i.position)
            records.append(retried(submission, again, retry, number + retry * 7, given[again]))
            records += _chunk(chance, submission, again, number + retry * 10, given)
    if chance.random() < 0.4:
        records += a_registered_batch(chance, "7", inputs=4)
    for number in range(chance.randint(0, 2)):
        batch_id = chance.choice((None, "batch_foreign"))
        records.append(run_event(f"run_foreign_{number}", batch_id, "PROCESSED", 9, key=None, end=8))
    records += chance.sample(records, len(records) // 6)
    _reorder(chance, records)
    return records


def _chunk(
    chance: random.Random, submission: str, chunk: str, number: int, given: dict[str, list[events.Input]]
) -> list[Record]:
    records, inputs = [], given[chunk]
    for attempt in range(1, chance.choice((1, 1, 2, 3)) + 1):
        when, batch_id = number + attempt / 10, f"batch_{chance.randint(100, 999)}_{number}_{attempt}"
        records.append(batch_event(events.BatchRequested, submission, chunk, attempt, when, inputs=inputs))
        fates = ("accepted", "accepted", "accepted late", "refused", "returned", "discarded", "cancelled", "unknown")
        fate = chance.choice(fates)
        if fate == "returned":
            records.append(batch_event(events.BatchReturned, submission, chunk, attempt, when, reason="429"))
            continue
        if fate == "refused":
            refusal = {"status": 400, "code": "INVALID_REQUEST", "message": "no"}
            records.append(
                batch_event(events.BatchRejected, submission, chunk, attempt, when, inputs=inputs, **refusal)
            )
            continue
        runs = _runs(chance, chunk, attempt, batch_id, given, when)
        if fate == "accepted":
            more = {"batch_id": batch_id, "inputs": inputs}
            records.append(batch_event(events.BatchSubmitted, submission, chunk, attempt, when, **more))
            records += runs
            continue
        records.append(batch_event(events.BatchInDoubt, submission, chunk, attempt, when, reason="reset"))
        if fate == "discarded":
            more = {"inputs": inputs, "by": "ann"}
            records.append(batch_event(events.DoubtDiscarded, submission, chunk, attempt, when, **more))
        elif fate == "cancelled":
            more = {"inputs": inputs, "by": "ann", "cancellation_id": "can_1"}
            records.append(batch_event(events.BatchCancelled, submission, chunk, attempt, when, **more))
        else:
            records.append(batch_event(events.DoubtResent, submission, chunk, attempt, when, reason="window"))
        records += runs
        if fate == "accepted late":
            kind = chance.choice((events.BatchSubmitted, events.DoubtAdopted))
            by = {"by": "ann"} if kind is events.DoubtAdopted else {}
            records.append(
                batch_event(kind, submission, chunk, attempt, when + 5, batch_id=batch_id, inputs=inputs, **by)
            )
    return records


def _runs(
    chance: random.Random,
    chunk: str,
    attempt: int,
    batch_id: str,
    given: dict[str, list[events.Input]],
    when: float,
) -> list[Record]:
    """Return observations of the runs of a batch. Some inputs have two runs: the contract does not exclude it."""
    records = []
    weights, without_batch = chance.choice(((_OFTEN_OWN, 0.05), (_OFTEN_CHANGED, 0.3)))
    for i in given[chunk]:
        for twin in range(chance.choice((1, 1, 1, 2))):
            run_id = f"run_{chance.randint(0, 99):02d}_{batch_id}_{i.position}_{twin}"
            for _ in range(chance.randint(1, 4)):
                end = when + chance.randint(1, 4)
                status = chance.choice(_STATUSES)
                more: dict[str, Any] = {"key": _key(chance, weights, chunk, attempt, i, given), "end": end}
                more["source"] = chance.choice(("webhook", "poll"))
                named = batch_id if chance.random() >= without_batch else None
                records.append(run_event(run_id, named, status, end + chance.randint(0, 2), **more))
    return records


def _key(
    chance: random.Random,
    weights: tuple[int, ...],
    chunk: str,
    attempt: int,
    i: events.Input,
    given: dict[str, list[events.Input]],
) -> Reserved | None:
    """Return the key that the run was sent with, or one that somebody has changed since."""
    what = chance.choices(_KEYS, weights)[0]
    if what == "none":
        return None
    if what == "neighbour":
        other: events.Input = chance.choice(given[chunk])
        return Reserved(INSTALLATION, other.input_id, chunk, attempt, other.position)
    if what == "stranger":
        stranger: events.Input = chance.choice(given[chance.choice(sorted(given))])
        return Reserved(INSTALLATION, chance.choice((stranger.input_id, "nobody")), chunk, attempt, 1)
    if what == "other chunk":
        chunk = chance.choice((*sorted(given), f"{chunk}-1", "theirs.c1"))
        return Reserved(INSTALLATION, i.input_id, chunk, attempt, i.position)
    installation = "inst_other" if what == "other installation" else INSTALLATION
    return Reserved(installation, i.input_id, chunk, attempt + (what == "other attempt"), i.position)


def _reorder(chance: random.Random, records: list[Record]) -> None:
    """Move some records, or shuffle all of them."""
    if chance.random() < 0.3:
        chance.shuffle(records)
        return
    for _ in range(len(records) // 3):
        records.insert(chance.randrange(len(records)), records.pop(chance.randrange(len(records))))
