"""Random histories for the join: chunks tried more than once, runs whose metadata change, batchIds that are left out.

Unlike :func:`tests.records.a_world`, which is plausible, a history may do whatever Extend's contract does not exclude.
What it does exclude: a run is of one batch, though an observation may leave the batchId out.
"""

from __future__ import annotations

import random
from typing import Any

from everyrun.extend.reserved import Reserved
from everyrun.log import events
from everyrun.log.cloudevents import Record, record
from tests.records import INSTALLATION, a_registered_batch, an_input, at, batch_event, run_event

_INPUTS = 2
#: How often a run's key is what it was sent with, or what somebody made of it since: in some histories seldom.
_KEYS = ("own", "none", "neighbour", "stranger", "other chunk", "other attempt", "other installation")
_OFTEN_OWN, _OFTEN_CHANGED = (80, 6, 4, 3, 3, 2, 2), (40, 25, 15, 5, 8, 4, 3)
_STATUSES = ("PENDING", "PROCESSING", "NEEDS_REVIEW", "PROCESSED", "FAILED", "CANCELLED")


def a_history(chance: random.Random) -> list[Record]:
    """The records of a history, in the order in which they were written."""
    # Another number, other partitions.
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
    said = [record("batches", accepted, key=submission, id=submission, source="/test", time=at(0))]
    given = {
        chunk: [an_input(submission, number * _INPUTS + n + 1) for n in range(_INPUTS)]
        for number, chunk in enumerate(chunks)
    }
    for number, chunk in enumerate(chunks):
        said += _chunk(chance, submission, chunk, number, given)
    if chance.random() < 0.4:
        said += a_registered_batch(chance, "7", inputs=4)
    for number in range(chance.randint(0, 2)):
        batch_id = chance.choice((None, "batch_foreign"))
        said.append(run_event(f"run_foreign_{number}", batch_id, "PROCESSED", 9, key=None, end=8))
    said += chance.sample(said, len(said) // 6)
    _disturb(chance, said)
    return said


def _chunk(
    chance: random.Random, submission: str, chunk: str, number: int, given: dict[str, list[events.Input]]
) -> list[Record]:
    said, inputs = [], given[chunk]
    for attempt in range(1, chance.choice((1, 1, 2, 3)) + 1):
        when, batch_id = number + attempt / 10, f"batch_{chance.randint(100, 999)}_{number}_{attempt}"
        said.append(batch_event(events.BatchRequested, submission, chunk, attempt, when, inputs=inputs))
        fate = chance.choice(("taken", "taken", "taken late", "refused", "returned", "discarded", "unknown"))
        if fate == "returned":
            said.append(batch_event(events.BatchReturned, submission, chunk, attempt, when, reason="429"))
            continue
        if fate == "refused":
            refusal = {"status": 400, "code": "INVALID_REQUEST", "message": "no"}
            said.append(batch_event(events.BatchRejected, submission, chunk, attempt, when, inputs=inputs, **refusal))
            continue
        runs = _runs(chance, chunk, attempt, batch_id, given, when)
        if fate == "taken":
            more = {"batch_id": batch_id, "inputs": inputs}
            said.append(batch_event(events.BatchSubmitted, submission, chunk, attempt, when, **more))
            said += runs
            continue
        said.append(batch_event(events.BatchInDoubt, submission, chunk, attempt, when, reason="reset"))
        if fate == "discarded":
            more = {"inputs": inputs, "by": "ann"}
            said.append(batch_event(events.DoubtDiscarded, submission, chunk, attempt, when, **more))
        else:
            said.append(batch_event(events.DoubtResent, submission, chunk, attempt, when, reason="window"))
        said += runs
        if fate == "taken late":
            kind = chance.choice((events.BatchSubmitted, events.DoubtAdopted))
            by = {"by": "ann"} if kind is events.DoubtAdopted else {}
            said.append(batch_event(kind, submission, chunk, attempt, when + 5, batch_id=batch_id, inputs=inputs, **by))
    return said


def _runs(
    chance: random.Random,
    chunk: str,
    attempt: int,
    batch_id: str,
    given: dict[str, list[events.Input]],
    when: float,
) -> list[Record]:
    """Observations of the runs of a batch; some inputs have two runs in it, which Extend never promised not to make."""
    said = []
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
                said.append(run_event(run_id, named, status, end + chance.randint(0, 2), **more))
    return said


def _key(
    chance: random.Random,
    weights: tuple[int, ...],
    chunk: str,
    attempt: int,
    i: events.Input,
    given: dict[str, list[events.Input]],
) -> Reserved | None:
    """The key that the run was sent with, or what somebody made of it since."""
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


def _disturb(chance: random.Random, said: list[Record]) -> None:
    """Have some records come earlier or later, or all of them in any order."""
    if chance.random() < 0.3:
        chance.shuffle(said)
        return
    for _ in range(len(said) // 3):
        said.insert(chance.randrange(len(said)), said.pop(chance.randrange(len(said))))
