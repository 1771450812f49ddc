"""Make records of a log for tests: events of a small world, in any order and in any polls."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from everyrun.extend import reserved
from everyrun.log import events
from everyrun.log.cloudevents import Record, record, timestamp
from everyrun.log.keys import lineage, partition_of, run_key
from everyrun.log.reading import Poll
from everyrun.log.topics import LogIdentity

START = 1_767_225_600.0
INSTALLATION = "inst_test"
#: The default number of partitions of :func:`lay_out`, and the log that they belong to.
PARTITIONS = 2
LOG = LogIdentity("cluster", PARTITIONS)


class Logged(NamedTuple):
    """A record as aiokafka reads it."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    timestamp: int
    timestamp_type: int = 1


def logged(topic: str, partition: int, offset: int) -> Logged:
    """A record without content."""
    return Logged(f"everyrun.{topic}", partition, offset, None, b"", [], 1)


def at(seconds: float) -> str:
    return timestamp(START + seconds)


def an_input(submission: str, position: int) -> events.Input:
    return events.Input(
        input_id=f"{submission}:{position}",
        external_id=str(position),
        position=position,
        file={"url": f"https://files.example.com/{position}.pdf"},
        metadata={"row": position},
    )


def batch_event(kind: type, submission: str, chunk: str, attempt: int, when: float, **more: Any) -> Record:
    given = {"submission_id": submission, "chunk": chunk, "attempt": attempt, **more}
    names = {field.name for field in msgspec.structs.fields(kind)}
    sent = {"workflow_id": "workflow_1", "workflow_version": None, "priority": 90, "installation": INSTALLATION}
    times = {"deadline": at(when), "evidence": "answer", "resends": attempt, "by": None, "reason": "because"}
    times |= dict.fromkeys(
        ("submitted_at", "registered_at", "rejected_at", "adopted_at", "discarded_at", "cancelled_at"), at(when)
    )
    given = {**{name: value for name, value in {**sent, **times}.items() if name in names}, **given}
    event = kind(**given)
    key = more["batch_id"] if kind is events.BatchRegistered else lineage(chunk)
    tag = kind.__struct_config__.tag
    return record("batches", event, key=key, id=f"{chunk}/{attempt}/{tag}", source="/test", time=at(when))


def retried(submission: str, chunk: str, retry: int, when: float, inputs: list[events.Input]) -> Record:
    """The event that gives inputs a new try in a chunk of their own."""
    event = events.InputsRetried(
        submission_id=submission,
        chunk=chunk,
        retry=retry,
        workflow_id="workflow_1",
        first_position=100 * retry,
        total=10,
        filter=events.RetryFilter(statuses=["FAILED"]),
        requested_at=at(retry),
        by="ann",
        reason="again",
        inputs=inputs,
    )
    return record("batches", event, key=lineage(chunk), id=f"{chunk}/inputs-retried", source="/test", time=at(when))


def run_event(
    run_id: str,
    batch_id: str | None,
    status: str,
    when: float,
    *,
    key: reserved.Reserved | None,
    source: str = "webhook",
    end: float | None = None,
    size: int = 0,
    metadata: dict[str, Any] | None = None,
    **more: Any,
) -> Record:
    metadata = {"row": 1} if metadata is None else metadata
    run = {
        "object": "workflow_run",
        "id": run_id,
        "status": status,
        "batchId": batch_id,
        "metadata": metadata if key is None else reserved.mark(metadata, key),
        "failureReason": "INTERNAL_ERROR" if status == "FAILED" else None,
        "failureMessage": None,
        "endTime": None if end is None else at(end),
        "usage": {"credits": 2.0},
        "stepRuns": [],
        "padding": "x" * size,
        **more,
    }
    event = events.RunObserved(source=source, run=msgspec.Raw(msgspec.json.encode(run)))  # type: ignore[arg-type]
    identifier = f"{run_id}/{status}/{source}/{when}"
    kafka_key = run_key(msgspec.json.encode(run["metadata"]), batch_id, run_id)
    return record("runs", event, key=kafka_key, id=identifier, source="/test", time=at(when), subject=run_id)


def lay_out(
    records: Iterable[Record], partitions: int = PARTITIONS, prefix: str = "everyrun."
) -> dict[tuple[str, int], list[Logged]]:
    """Append records to partitions by their keys, as a producer does."""
    log: dict[tuple[str, int], list[Logged]] = defaultdict(list)
    for r in records:
        partition = partition_of(r.key, partitions)
        there = log[r.topic, partition]
        there.append(Logged(prefix + r.topic, partition, len(there), r.key, r.value, r.headers, 1))
    return log


def in_polls(log: dict[tuple[str, int], list[Logged]], chance: random.Random) -> list[list[Poll]]:
    """Divide a log into groups of polls of random sizes: each partition in order, the partitions in any order."""
    left = {position: list(records) for position, records in log.items() if records}
    groups = []
    while left:
        group = []
        for position in chance.sample(sorted(left), chance.randint(1, len(left))):
            size = chance.choice((1, 2, 5, 1000))
            records, left[position] = left[position][:size], left[position][size:]
            group.append(Poll(*position, records))
            if not left[position]:
                del left[position]
        groups.append(sorted(group, key=lambda poll: poll[:2]))
    return groups


def a_world(chance: random.Random, chunks: int = 3, inputs: int = 4, of: str = "") -> list[Record]:
    """Return the events of a submission with doubts, double batches, refusals, reruns and duplicate runs."""
    submission = f"sub_{of}{chance.randint(0, 9)}"
    records: list[Record] = []
    accepted = events.SubmissionAccepted(
        submission_id=submission,
        workflow_id="workflow_1",
        workflow_version=None,
        priority=90,
        expected=chunks * inputs,
        batches=chunks,
        idempotency_key=submission,
        content_hash="00" * 32,
        created_at=at(0),
    )
    records.append(record("batches", accepted, key=submission, id=submission, source="/test", time=at(0)))
    for number in range(chunks):
        chunk = f"{submission}.c{number + 1:05d}"
        given = [an_input(submission, number * inputs + n + 1) for n in range(inputs)]
        fates = ("answered", "refused", "twice", "returned", "unknown", "adopted", "named", "discarded", "too early")
        fate = chance.choice((*fates, "cancelled", "never sent"))
        accepted_attempts: list[tuple[int, str]] = []
        when = float(number)
        cancelled = {"inputs": given, "by": "ann", "cancellation_id": "can_1"}
        if fate == "never sent":
            records.append(batch_event(events.BatchCancelled, submission, chunk, 0, when, **cancelled))
            continue
        attempts = 2 if fate in ("twice", "returned", "adopted") else 1
        for attempt in range(1, attempts + 1):
            when += 0.5
            records.append(batch_event(events.BatchRequested, submission, chunk, attempt, when, inputs=given))
            batch_id = f"batch_{of}{number}_{attempt}"
            if fate == "returned" and attempt == 1:
                records.append(batch_event(events.BatchReturned, submission, chunk, attempt, when, reason="429"))
            elif fate in ("twice", "adopted") and attempt == 1:
                records.append(batch_event(events.BatchInDoubt, submission, chunk, attempt, when, reason="time-out"))
                records.append(batch_event(events.DoubtResent, submission, chunk, attempt, when, reason="window"))
                accepted_attempts.append((attempt, batch_id))
            elif fate == "unknown":
                records.append(batch_event(events.BatchInDoubt, submission, chunk, attempt, when, reason="reset"))
                accepted_attempts += [(attempt, batch_id)] if chance.random() < 0.5 else []
                continue
            elif fate in ("discarded", "too early"):
                records.append(batch_event(events.BatchInDoubt, submission, chunk, attempt, when, reason="time-out"))
                records.append(
                    batch_event(events.DoubtDiscarded, submission, chunk, attempt, when, inputs=given, by="ann")
                )
                if fate == "discarded":
                    continue
                accepted_attempts.append((attempt, batch_id))
            elif fate == "cancelled":
                records.append(batch_event(events.BatchInDoubt, submission, chunk, attempt, when, reason="time-out"))
                records.append(batch_event(events.BatchCancelled, submission, chunk, attempt, when, **cancelled))
                if chance.random() < 0.5:
                    continue
                # A run of the call appears late.
                accepted_attempts.append((attempt, batch_id))
            elif fate == "named":
                named = {"batch_id": batch_id, "inputs": given, "by": "ann"}
                records.append(batch_event(events.DoubtAdopted, submission, chunk, attempt, when, **named))
                accepted_attempts.append((attempt, batch_id))
                if chance.random() < 0.5:
                    continue
            elif fate == "refused":
                refusal = {"status": 400, "code": "INVALID_REQUEST", "message": "no"}
                records.append(
                    batch_event(events.BatchRejected, submission, chunk, attempt, when, inputs=given, **refusal)
                )
                continue
            else:
                accepted_attempts.append((attempt, batch_id))
            if (attempt, batch_id) in accepted_attempts and not (fate == "adopted" and attempt == 2):
                records.append(
                    batch_event(
                        events.BatchSubmitted, submission, chunk, attempt, when, batch_id=batch_id, inputs=given
                    )
                )
        for attempt, batch_id in accepted_attempts:
            records += _runs(chance, chunk, attempt, batch_id, given, when)
    records += a_registered_batch(chance, f"{of}7")
    requested = events.CancellationRequested(
        cancellation_id="can_1",
        submission_id=submission,
        scope="submission",
        batch_id=None,
        positions=[events.PositionRange(1, chunks * inputs)],
        requested_at=at(0),
        by="ann",
        reason="the wrong folder",
    )
    records.append(record("batches", requested, key=submission, id=f"{submission}/can_1", source="/test", time=at(0)))
    for number, kind in enumerate((events.WorkflowPaused, events.WorkflowResumed)):
        paused = kind("workflow_1", "402", None)
        records.append(
            record("batches", paused, key="workflow_1", id=f"pause {number}", source="/test", time=at(number))
        )
    records.append(run_event("run_foreign", "batch_foreign", "PROCESSED", 9, key=None, end=8))
    records += chance.sample(records, len(records) // 5)
    return records


_OWN = re.compile(rb"\b(sub|batch|run)_(?=\d|of_|other_|foreign)")


def apart(records: Iterable[Record], name: str) -> list[Record]:
    """Return the same events with other ids, so that several worlds fit into one log."""

    def own(text: bytes) -> bytes:
        return _OWN.sub(rb"\1_" + name.encode() + b"_", text)

    return [Record(r.topic, own(r.key), own(r.value), [(k, own(v)) for k, v in r.headers]) for r in records]


def _runs(
    chance: random.Random, chunk: str, attempt: int, batch_id: str, given: list[events.Input], when: float
) -> list[Record]:
    records = []
    for i in given:
        key = reserved.Reserved(INSTALLATION, i.input_id, chunk, attempt, i.position)
        run_id = f"run_{chance.randint(0, 99):02d}_{batch_id}_{i.position}"
        end = when + chance.randint(1, 4)
        final = chance.choice(("PROCESSED", "PROCESSED", "FAILED", "CANCELLED"))
        if chance.random() < 0.3:
            records.append(run_event(run_id, batch_id, "PROCESSING", end - 0.5, key=key, source="poll"))
        if chance.random() < 0.2:
            records.append(run_event(run_id, batch_id, "NEEDS_REVIEW", end, key=key, end=end))
        if chance.random() < 0.9:
            records.append(run_event(run_id, batch_id, final, end + 1, key=key, end=end))
        if chance.random() < 0.3:
            records.append(run_event(run_id, batch_id, final, end + 2, key=key, end=end, source="poll"))
        if final == "FAILED" and chance.random() < 0.5:
            records.append(run_event(run_id, batch_id, "PROCESSED", end + 9, key=key, end=end + 8))
        if chance.random() < 0.1:
            records.append(run_event(run_id, batch_id, final, end + 3, key=None, end=end, source="poll"))
    return records


def a_registered_batch(chance: random.Random, number: str, inputs: int = 6) -> list[Record]:
    """Return the events of a registered batch, whose last two inputs have the same metadata.

    Its runs carry no key, or that of another installation. The metadata of some change to values that no input has.
    """
    submission, batch_id = f"sub_of_{number}", f"batch_other_{number}"
    given = [
        msgspec.structs.replace(an_input(submission, n), metadata={"row": min(n, inputs - 1), "x": [1.0, None]})
        for n in range(1, inputs + 1)
    ]
    registered = batch_event(
        events.BatchRegistered, submission, f"{submission}.c00001", 1, 6, batch_id=batch_id, inputs=given
    )
    records = [registered]
    for i in given:
        run_id, end = f"run_of_{number}_{i.position}", 7.0 + chance.randint(0, 3)
        theirs = reserved.Reserved("inst_other", f"their:{i.position}", "their.c1", 1, i.position)
        key = chance.choice((None, theirs))
        tagged = {"x": [1, None], "extend:usage_tags": ["a-b"], **i.metadata}
        changed = {**i.metadata, "note": "added"}
        unique = i.position < inputs - 1
        more = {"key": key, "metadata": tagged}
        if chance.random() < 0.4:
            records.append(run_event(run_id, batch_id, "PROCESSING", end - 1, **more))
        if chance.random() < 0.8:
            records.append(run_event(run_id, batch_id, "PROCESSED", end + 1, end=end, **more))
        if unique and chance.random() < 0.5:
            more["metadata"] = changed
            records.append(run_event(run_id, batch_id, "PROCESSED", end + 2, end=end, source="poll", **more))
    further = run_event(
        f"run_of_{number}_further", batch_id, "FAILED", 12, key=None, end=11, metadata=given[0].metadata
    )
    return [*records, *([further] if chance.random() < 0.5 else [])]
