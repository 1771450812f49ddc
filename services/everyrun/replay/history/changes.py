"""Say what each event changed: project the events of one input, one at a time, in the order of the log. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec.structs import replace

from everyrun.log import events
from everyrun.log.cloudevents import LoggedEvent
from everyrun.log.reading import LogRecord
from everyrun.projection.decode import InvalidRecordError, event_of, run_of
from everyrun.projection.rules.attempts import batches_of, rows_of
from everyrun.projection.rules.match import INPUT_UNKNOWN, Batch, Unmatched, fingerprint, match, unique_by_attempt
from everyrun.projection.rules.merge import Binding, Run, merge, why_greater
from everyrun.projection.rules.run_selection import Selection, retry_in, started_by, version_of
from everyrun.projection.tables import RESULT_COLUMNS, InputState

#: Events of an attempt that make no row. For each: the status of an input without a row after this event, and a text
#: about the attempt.
_WITHOUT_ROW: dict[type, tuple[str, str]] = {
    events.BatchRequested: ("SENDING", "is about to be sent"),
    events.BatchReturned: ("WAITING", "was not accepted for now"),
    events.BatchInDoubt: ("IN_DOUBT", "got no answer"),
    events.DoubtResent: ("WAITING", "was given up; its chunk will be sent again"),
    events.BatchCut: ("WAITING", "was refused because of some of its inputs; its chunk was cut"),
}


class Change(NamedTuple):
    """The effect of an event, in words, and the status after it."""

    what: str
    status: str


class InputProjection:
    """The state of one input after the events that have been applied."""

    def __init__(self, input_id: str) -> None:
        self._input_id = input_id
        self._runs: dict[str, Run] = {}
        self._fingerprints: dict[str, list[str]] = {}
        self._bindings: dict[str, list[Binding]] = {}
        self._batches: dict[str, Batch] = {}
        self._row_version = ""
        self._row_status = ""
        #: The row as the events of attempts make it, before a run of the input is known.
        self._attempt_row: InputState | None = None
        #: The value of ``file`` in each event that made a row. The values may differ, because the queue deletes files
        #: after a while.
        self.files: list[bytes] = []
        self._without_row = "WAITING"
        #: The input's position in its submission; None before an event contains the input.
        self._position: int | None = None
        #: True after an event gave the input a new try, which has another position in the queue.
        self._retried = False
        self._current: str | None = None

    @property
    def status(self) -> str:
        """The input's status."""
        if self._current is not None:
            return self._runs[self._current].status
        return self._row_status or self._without_row

    @property
    def version(self) -> str | None:
        """The version of the input's row; None if it has no row yet."""
        if self._current is not None:
            return version_of(self._bound(self._runs[self._current]))
        return self._row_version or None

    @property
    def row(self) -> dict[str, Any] | None:
        """The input's row of ``results``, with JSON as text; None if it has no row yet."""
        if self._attempt_row is None:
            return None
        state = self._attempt_row
        if self._current is not None:
            run = self._bound(self._runs[self._current])
            state = InputState(state.row, selection=Selection(state.row, run, version_of(run), ()))
        return dict(zip(RESULT_COLUMNS, state.values(), strict=True))

    @property
    def run_id(self) -> str | None:
        """The id of the current run."""
        return self._current

    def _bound(self, run: Run) -> Run:
        """Return the run with the attempt of its batch, even if its metadata name another attempt."""
        batch = self._batches[run.batch_id or ""]
        return replace(run, binding=Binding(self._input_id, batch.chunk, batch.attempt, ""))

    def apply(self, topic: str, record: LogRecord) -> Change:
        """Apply the next event, and say what it changed."""
        before = self.status
        try:
            what = self._apply_run(run_of(record)) if topic == "runs" else self._apply_event(topic, record)
        except InvalidRecordError as error:
            return Change(f"no change: the event cannot be decoded ({error})", before)
        after = self.status
        return Change(what if before == after else f"{what}; {before} becomes {after}", after)

    def _apply_event(self, topic: str, record: LogRecord) -> str:
        logged = event_of(topic, record)
        event: Any = logged.event
        if isinstance(event, events.SubmissionAccepted):
            return f"{event.expected} inputs were submitted for {event.workflow_id}"
        if isinstance(event, events.DeliveryDeferred):
            return f"{event.event_type} of {event.run_id} arrived as a link to fetch"
        if isinstance(event, events.MessageQuarantined):
            return f"quarantined: {event.reason}"
        if isinstance(event, events.InputsRetried):
            return self._apply_retry(logged)
        if isinstance(event, events.CancellationRequested):
            return self._cancellation(event)
        if not hasattr(event, "attempt"):
            return f"no change of this input{_details(event)}"
        return self._apply_attempt(logged)

    def _apply_retry(self, logged: LoggedEvent) -> str:
        event: Any = logged.event
        what = f"retry {event.retry} gives it a new try in chunk {event.chunk}{_details(event)}"
        before, self._retried = self._current, True
        for row, reason, message in rows_of(logged):
            if row.input_id == self._input_id and row.version > self._row_version:
                self.files.append(row.file)
                self._row_version, self._row_status = row.version, row.status
                self._attempt_row = InputState(row, reason, message)
        selected = self._select_run()
        superseded = f"; {before} is superseded" if before is not None and self._current is None else ""
        return what + (superseded or selected)

    def _cancellation(self, event: events.CancellationRequested) -> str:
        number = sum(part.last_position - part.first_position + 1 for part in event.positions)
        text = f"cancellation {event.cancellation_id} of {number} inputs was requested{_details(event)}"
        position = self._position
        if (
            position is not None
            and event.scope == "inputs"
            and not self._retried
            and all(not part.first_position <= position <= part.last_position for part in event.positions)
        ):
            return f"no change of this input: {text}"
        return text

    def _apply_attempt(self, logged: LoggedEvent) -> str:
        event: Any = logged.event
        own_positions = [given.position for given in getattr(event, "inputs", ()) if given.input_id == self._input_id]
        self._position = next(iter(own_positions), self._position)
        attempt = f"attempt {event.attempt} of chunk {event.chunk}"
        if type(event) in _WITHOUT_ROW:
            self._without_row, what = _WITHOUT_ROW[type(event)]
            if isinstance(event, events.BatchCut) and not event.status:
                return f"chunk {event.chunk} was cut: {event.message}"
            return f"{attempt} {what}{_details(event)}"
        self._batches |= batches_of([logged])
        own = [brought for brought in rows_of(logged) if brought[0].input_id == self._input_id]
        batch_id = getattr(event, "batch_id", None)
        what = f"{attempt} was accepted as {batch_id}" if batch_id else f"{attempt} was refused"
        if isinstance(event, events.BatchCancelled):
            what = f"chunk {event.chunk} was cancelled before Extend accepted it"
        what += _details(event)
        for row, reason, message in own:
            self.files.append(row.file)
            if row.version > self._row_version:
                self._row_version, self._row_status = row.version, row.status
                self._attempt_row = InputState(row, reason, message)
            else:
                what += "; an earlier attempt was accepted and stays"
        return f"{what}{self._select_run()}"

    def _apply_run(self, run: Run) -> str:
        self._fingerprints.setdefault(run.run_id, []).append(fingerprint(run.metadata) or "")
        if run.binding is not None:
            self._bindings.setdefault(run.run_id, []).append(run.binding)
        known = self._runs.get(run.run_id)
        merged = run if known is None else merge(known, run)
        self._runs[run.run_id] = merged
        what = _observation(known, run, merged)
        if known is not None and merged.order == known.order:
            # This observation is older, but it may be the first one that names the batch or the input.
            before, selected = self._current, self._select_run()
            return what + (selected if self._current != before else "")
        owner = self._input_of(merged)
        return what + (f"; not matched yet ({owner.reason})" if isinstance(owner, Unmatched) else self._select_run())

    def _input_of(self, run: Run) -> str | Unmatched:
        batch = self._batches.get(run.batch_id or "")
        bindings = unique_by_attempt(self._bindings.get(run.run_id, ()))
        found = match(run.batch_id, batch, bindings, self._fingerprints.get(run.run_id, ()))
        # Once a run is matched, it stays matched, whatever its metadata contain later.
        if run.run_id == self._current:
            return self._input_id
        if isinstance(found, Unmatched):
            return found
        assert batch is not None
        assert batch.members is not None
        return next((input_id for input_id in found if input_id in batch.members), Unmatched(INPUT_UNKNOWN))

    def _select_run(self) -> str:
        own = [run for run in self._runs.values() if self._input_of(run) == self._input_id]
        if not own:
            return ""
        winner = max(own, key=lambda run: version_of(self._bound(run)))
        newest = retry_in(self._row_version) if self._row_version else 0
        if started_by(self._bound(winner)) < newest:
            self._current = None
            return f"; it belongs to an earlier try than retry {newest}, so it is superseded"
        own = [run for run in own if started_by(self._bound(run)) == started_by(self._bound(winner))]
        before, self._current = self._current, winner.run_id
        others = ", ".join(run.run_id for run in own if run.run_id != winner.run_id)
        if before == winner.run_id:
            return f"; {winner.run_id} stays the current run, before {others}" if others else ""
        if before is None and not others:
            return f"; {winner.run_id} becomes the current run"
        reason = f"of several {'final' if winner.final else 'open'} runs the smallest id is current"
        if winner.final and any(not run.final for run in own):
            reason = "a final run comes before an open one"
        return f"; {winner.run_id} becomes the current run, {others} is a duplicate: {reason}"


def _observation(known: Run | None, run: Run, merged: Run) -> str:
    """Say what an observation changed about its run."""
    text = f"{run.source} reports {run.run_id} as {run.status}"
    text += f" ({run.failure_reason})" if run.failure_reason else ""
    if known is None:
        return f"{text}: first observation of this run"
    if merged.order != known.order:
        return f"{text}: replaces the known state, {why_greater(run.order, known.order)}"
    reason = why_greater(known.order, run.order)
    return f"{text}: no change, " + (
        "it was known already" if reason is None else f"{known.status} by {known.source} stays, {reason}"
    )


def _details(event: Any) -> str:
    parts = [
        str(getattr(event, name)) for name in ("code", "reason", "message", "evidence") if getattr(event, name, None)
    ]
    by = getattr(event, "by", None)
    return (f": {', '.join(parts)}" if parts else "") + (f" (by {by})" if by else "")


def run_changes(records: Sequence[tuple[str, Any]]) -> list[Change]:
    """Say what each event changed about its run, for the history of a run or a batch.

    ``records`` are pairs (topic, record).
    """
    runs: dict[str, Run] = {}
    changes = []
    for topic, record in records:
        if topic != "runs":
            projection = InputProjection("")
            changes.append(Change(projection.apply(topic, record).what.partition(";")[0], ""))
            continue
        try:
            run = run_of(record)
        except InvalidRecordError as error:
            changes.append(Change(f"no change: the event cannot be decoded ({error})", ""))
            continue
        known = runs.get(run.run_id)
        runs[run.run_id] = merged = run if known is None else merge(known, run)
        alone = "" if merged.batch_id else "; it names no batch (it was started alone), so it matches no input"
        changes.append(Change(_observation(known, run, merged) + alone, merged.status))
    return changes
