"""What each event changed for one input: merge and select, a step at a time, in the order of the log. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec.structs import replace

from everyrun.log import events
from everyrun.log.cloudevents import LoggedEvent
from everyrun.projection.decode import InvalidRecordError, event_of, run_of
from everyrun.projection.rules.attempts import batches_of, rows_of
from everyrun.projection.rules.match import INPUT_UNKNOWN, Batch, Unmatched, fingerprint, in_order, match
from everyrun.projection.rules.merge import Binding, Run, merge, why_greater
from everyrun.projection.rules.run_selection import Selection, version_of_run
from everyrun.projection.tables import RESULT_COLUMNS, InputState

#: What an event of an attempt makes of an input that has no row yet.
_WITHOUT_ROW: dict[type, str] = {
    events.BatchRequested: "SENDING",
    events.BatchReturned: "WAITING",
    events.BatchInDoubt: "IN_DOUBT",
    events.DoubtResent: "WAITING",
    events.BatchCut: "WAITING",
}


class Change(NamedTuple):
    """What an event changed: in words, and the input's status after it."""

    what: str
    status: str


class InputStory:
    """The state of one input as its events make it."""

    def __init__(self, input_id: str) -> None:
        self._input_id = input_id
        self._runs: dict[str, Run] = {}
        self._seen_with: dict[str, list[str]] = {}
        self._bindings: dict[str, list[Binding]] = {}
        self._batches: dict[str, Batch] = {}
        self._row = ""
        self._row_status = ""
        #: The row that an attempt brought, until a run stands for it; and the file of each event that brought one:
        #: the queue forgets files after a while, so that they may differ.
        self._brought: InputState | None = None
        self.files: list[bytes] = []
        self._without_row = "WAITING"
        self._standing: str | None = None

    @property
    def status(self) -> str:
        """The input's status after the events so far."""
        if self._standing is not None:
            return self._runs[self._standing].status
        return self._row_status or self._without_row

    @property
    def version(self) -> str | None:
        """The version of its row; None where it has none yet."""
        if self._standing is not None:
            return _version(self._runs[self._standing])
        return self._row or None

    @property
    def row(self) -> dict[str, Any] | None:
        """The whole row of ``results`` that the events make; JSON as text. None where they make none."""
        if self._brought is None:
            return None
        state = self._brought
        if self._standing is not None:
            run = self._runs[self._standing]
            batch = self._batches[run.batch_id or ""]
            # A run is counted at the attempt that its batch is, whatever its own metadata say.
            run = replace(run, binding=Binding(self._input_id, batch.chunk, batch.attempt, ""))
            state = InputState(state.row, selection=Selection(state.row, run, _version(run), ()))
        return dict(zip(RESULT_COLUMNS, state.values(), strict=True))

    @property
    def run_id(self) -> str | None:
        """The run that stands for it."""
        return self._standing

    def take(self, topic: str, record: Any) -> Change:
        """Take the next event; what it changed."""
        before = self.status
        try:
            what = self._take_run(run_of(record)) if topic == "runs" else self._take_fact(topic, record)
        except InvalidRecordError as error:
            return Change(f"nothing: it is not understood ({error})", before)
        after = self.status
        return Change(what if before == after else f"{what}; {before} becomes {after}", after)

    def _take_fact(self, topic: str, record: Any) -> str:
        fact = event_of(topic, record)
        event: Any = fact.event
        if isinstance(event, events.SubmissionAccepted):
            return f"{event.expected} inputs were handed in for {event.workflow_id}"
        if isinstance(event, events.DeliveryDeferred):
            return f"{event.event_type} of {event.run_id} came as a link to fetch"
        if isinstance(event, events.MessageQuarantined):
            return f"quarantined: {event.reason}"
        if not hasattr(event, "attempt"):
            return f"{_said(event)}: nothing of this input"
        return self._take_attempt(fact)

    def _take_attempt(self, fact: LoggedEvent) -> str:
        event: Any = fact.event
        attempt = f"attempt {event.attempt} at {event.chunk}"
        kind: Any = type(event)
        if kind in _WITHOUT_ROW:
            self._without_row = _WITHOUT_ROW[kind]
            words = {
                events.BatchRequested: "is about to be made",
                events.BatchReturned: "was not taken for now",
                events.BatchInDoubt: "has no answer",
                events.DoubtResent: "was given up, the chunk is sent again",
                events.BatchCut: "was refused because of some of its inputs, and cut",
            }[kind]
            return f"{attempt} {words}{_said(event)}"
        self._batches |= batches_of([fact])
        own = [brought for brought in rows_of(fact) if brought[0].input_id == self._input_id]
        told = (
            f"{attempt} was taken as {event.batch_id}" if getattr(event, "batch_id", None) else f"{attempt} was refused"
        )
        told += _said(event)
        for row, reason, message in own:
            self.files.append(row.file)
            if row.version > self._row:
                self._row, self._row_status = row.version, row.status
                self._brought = InputState(row, reason, message)
            else:
                told += "; an attempt that was taken stands"
        return f"{told}{self._choose()}"

    def _take_run(self, run: Run) -> str:
        name = f"{run.source} says {run.run_id} is {run.status}"
        name += f" ({run.failure_reason})" if run.failure_reason else ""
        self._seen_with.setdefault(run.run_id, []).append(fingerprint(run.metadata) or "")
        if run.binding is not None:
            self._bindings.setdefault(run.run_id, []).append(run.binding)
        known = self._runs.get(run.run_id)
        merged = run if known is None else merge(known, run)
        self._runs[run.run_id] = merged
        if known is not None and merged.order == known.order:
            why = why_greater(known.order, run.order)
            again = "it was known already" if why is None else f"{known.status} by {known.source} stands, {why}"
            # An observation that does not stand may still be the first to name the batch or the input.
            before, chosen = self._standing, self._choose()
            return f"{name}: nothing, {again}{chosen if self._standing != before else ''}"
        seen = (
            f"{name}: first seen of this run"
            if known is None
            else f"{name}: stands, {why_greater(run.order, known.order)}"
        )
        belongs = self._belongs(merged)
        return seen + (f"; not counted yet, {belongs.reason}" if isinstance(belongs, Unmatched) else self._choose())

    def _belongs(self, run: Run) -> str | Unmatched:
        batch = self._batches.get(run.batch_id or "")
        bindings = in_order(self._bindings.get(run.run_id, ()))
        found = match(run.batch_id, batch, bindings, self._seen_with.get(run.run_id, ()))
        # A run that was matched once stays so, whatever later metadata say.
        if run.run_id == self._standing:
            return self._input_id
        if isinstance(found, Unmatched):
            return found
        assert batch is not None
        assert batch.members is not None
        return next((input_id for input_id in found if input_id in batch.members), Unmatched(INPUT_UNKNOWN))

    def _choose(self) -> str:
        mine = [run for run in self._runs.values() if self._belongs(run) == self._input_id]
        if not mine:
            return ""
        winner = max(mine, key=_version)
        before, self._standing = self._standing, winner.run_id
        others = [run.run_id for run in mine if run.run_id != winner.run_id]
        if before == winner.run_id:
            return f"; {winner.run_id} still stands over {', '.join(others)}" if others else ""
        if before is None and not others:
            return f"; {winner.run_id} stands for the input"
        why = "of several final runs the smallest id stands" if winner.final else "of several open runs the smallest id"
        if winner.final and any(not run.final for run in mine):
            why = "a final run stands before an open one"
        return f"; {winner.run_id} stands, {', '.join(others)} is a duplicate: {why}"


def _version(run: Run) -> str:
    return version_of_run(run.run_id, run.final, run.order)


def _said(event: Any) -> str:
    parts = [
        str(getattr(event, name)) for name in ("code", "reason", "message", "evidence") if getattr(event, name, None)
    ]
    by = getattr(event, "by", None)
    return (f": {', '.join(parts)}" if parts else "") + (f" (by {by})" if by else "")


def run_changes(records: Sequence[tuple[str, Any]]) -> list[Change]:
    """What each event changed of the runs it speaks of, for the history of a run or a batch."""
    runs: dict[str, Run] = {}
    changes = []
    for topic, record in records:
        if topic != "runs":
            story = InputStory("")
            changes.append(Change(story.take(topic, record).what.partition(";")[0], ""))
            continue
        try:
            run = run_of(record)
        except InvalidRecordError as error:
            changes.append(Change(f"nothing: it is not understood ({error})", ""))
            continue
        known = runs.get(run.run_id)
        runs[run.run_id] = merged = run if known is None else merge(known, run)
        name = f"{run.source} says {run.run_id} is {run.status}"
        name += f" ({run.failure_reason})" if run.failure_reason else ""
        if known is None:
            what = f"{name}: first seen of this run"
        elif merged.order == known.order:
            why = why_greater(known.order, run.order)
            what = f"{name}: nothing, " + ("it was known already" if why is None else f"{known.status} stands, {why}")
        else:
            what = f"{name}: stands, {why_greater(run.order, known.order)}"
        changes.append(Change(what, merged.status))
    return changes
