"""The records of some polls, decoded and sorted by what they are about. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from everyrun.log import events
from everyrun.projection.decode import Fact, LogRecord, NotUnderstoodError, Poll, fact_of, run_of
from everyrun.projection.rules import decisions
from everyrun.projection.rules.merge import Binding, Run, merge


class Poison(NamedTuple):
    """A record that is not an event of its topic, or that cannot be stored."""

    topic: str
    record: LogRecord
    reason: str


Refused = Mapping[tuple[str, int, int], str]
"""Records known not to be storable, by (topic, partition, offset), each with the reason."""


class Content(NamedTuple):
    """The decoded records of some polls."""

    runs: dict[str, Run]
    first_seen: dict[str, datetime]
    #: The different metadata each run was seen with, in the order of the log.
    metadata: dict[str, list[bytes]]
    #: The different bindings each run was seen with, in the order of the log.
    bindings: dict[str, list[Binding]]
    #: The partitions of ``runs`` in which each run was seen.
    partitions: dict[str, set[int]]
    attempts: list[Fact]
    submissions: list[Fact]
    deliveries: list[Fact]
    quarantined: list[Fact]
    decisions: list[Fact]
    poison: list[Poison]


def read(polls: Sequence[Poll], refused: Refused | None = None) -> Content:
    """Decode polls; several observations of one run are merged. What is not understood is in ``poison``.

    Whatever decoding a record raises: an error that nobody thought of must cost that record, and not all after it.
    """
    content = Content({}, {}, {}, {}, {}, [], [], [], [], [], [])
    for poll in polls:
        for record in poll.records:
            try:
                if refused and (poll.topic, poll.partition, record.offset) in refused:
                    raise NotUnderstoodError(refused[poll.topic, poll.partition, record.offset])
                if poll.topic == "runs":
                    _take_run(content, run_of(record), record.partition)
                else:
                    _take_fact(content, fact_of(poll.topic, record))
            except NotUnderstoodError as error:
                content.poison.append(Poison(poll.topic, record, str(error)))
            except Exception as error:
                content.poison.append(Poison(poll.topic, record, f"{type(error).__name__}: {error}"))
    return content


def _take_run(content: Content, run: Run, partition: int) -> None:
    known = content.runs.get(run.run_id)
    content.runs[run.run_id] = run if known is None else merge(known, run)
    content.partitions.setdefault(run.run_id, set()).add(partition)
    bindings = content.bindings.setdefault(run.run_id, [])
    if run.binding is not None and run.binding not in bindings:
        bindings.append(run.binding)
    metadata = content.metadata.setdefault(run.run_id, [])
    if run.metadata not in metadata:
        metadata.append(run.metadata)
    seen = content.first_seen.get(run.run_id)
    content.first_seen[run.run_id] = run.observed_at if seen is None else min(seen, run.observed_at)


def _take_fact(content: Content, fact: Fact) -> None:
    if isinstance(fact.event, events.SubmissionAccepted):
        content.submissions.append(fact)
    elif isinstance(fact.event, events.DeliveryDeferred):
        content.deliveries.append(fact)
    elif isinstance(fact.event, events.QuarantineEvent):
        content.quarantined.append(fact)
        if isinstance(fact.event, decisions.OF_THE_QUARANTINE):
            content.decisions.append(fact)
    elif isinstance(fact.event, decisions.OF_NO_ATTEMPT):
        content.decisions.append(fact)
    else:
        if isinstance(fact.event, decisions.OF_AN_ATTEMPT):
            content.decisions.append(fact)
        content.attempts.append(fact)
        if isinstance(fact.event, events.BatchRegistered):
            content.submissions.append(fact)
