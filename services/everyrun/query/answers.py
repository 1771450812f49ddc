"""What the query service answers, as types. They are for the OpenAPI document: routes answer what they read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from everyrun.openapi import any_of
from everyrun.query.report import Polling
from everyrun.waiting import Waiting

Time = Annotated[str, Meta(description="RFC 3339, with its offset.")]
Cursor = Annotated[
    str | None, Meta(description="Give it as `cursor`, with the same filters, for the next page; null on the last.")
]
Json = dict[str, Any]
ByStatus = Annotated[dict[str, int], Meta(description="Inputs by status.")]


class Standing(Struct, frozen=True, kw_only=True):
    """How far a submission is."""

    submission_id: str
    expected: Annotated[int, Meta(description="Inputs of the submission.")]
    settled: Annotated[int, Meta(description="Inputs that are PROCESSED, FAILED, CANCELLED, REJECTED or REFUSED.")]
    open: Annotated[int, Meta(description="The other inputs.")]
    by_status: ByStatus
    waiting: Annotated[list[Waiting], Meta(description="What inputs without a row in results wait for.")]
    in_transit: Annotated[int, Meta(description="Inputs of which queue and tables say different things still.")]
    polling: Annotated[Polling | None, Meta(description="Missing results, and the poll that brings them.")]


class Imbalance(Struct, frozen=True, kw_only=True):
    """Two numbers that should agree and do not."""

    what: str
    expected: Annotated[Any, Meta(description="A number, or inputs by status.")]
    found: Annotated[Any, Meta(description="Of the same kind.")]
    batch: Annotated[str | UnsetType, Meta(description="The batch it is about; absent: the submission.")] = UNSET


class Report(Standing, frozen=True, kw_only=True):
    """Where a submission stands, and whether every number agrees."""

    workflow_id: str
    workflow_version: str | None
    created_at: Time
    unmatched: Annotated[int, Meta(description="Runs of its batches that no input is known for.")]
    unmatched_by_reason: dict[str, int]
    duplicates: Annotated[int, Meta(description="Further runs of inputs that have a standing one.")]
    pending_deliveries: Annotated[int, Meta(description="Runs whose payload is behind a link that is not fetched yet.")]
    overdue: Annotated[int, Meta(description="Inputs that are open for too long.")]
    overdue_by_reason: dict[str, int]
    batches: Annotated[dict[str, int], Meta(description="Attempts at batches by state.")]
    balanced: Annotated[bool, Meta(description="Whether all numbers agree and nothing is in transit.")]
    imbalances: list[Imbalance]


class BatchLine(Struct, frozen=True, kw_only=True):
    """An attempt at a batch: the kept counters beside a count of the rows. A row of the view `report`."""

    submission_id: str
    chunk: str
    attempt: int
    batch_id: str | None
    state: str
    expected: int
    inputs: Annotated[int, Meta(description="Inputs whose standing run or attempt is this one.")]
    settled: int
    counts: ByStatus
    runs_observed: int
    duplicates: int
    unmatched: int
    runs_in_results: int
    runs_in_duplicates: int
    counted_rows: Annotated[dict[str, int], Meta(description="Rows of results by status, counted now.")]
    balanced: bool


class Batch(BatchLine, frozen=True, kw_only=True):
    """One batch, with its times."""

    workflow_id: str | None
    workflow_version: str | None
    priority: int | None
    reason: str | None
    requested_at: Time | None
    submitted_at: Time | None
    settled_at: Time | None


class Batches(Struct, frozen=True):
    """A page of attempts."""

    batches: list[BatchLine]
    next_cursor: Cursor


class ResultLine(Struct, frozen=True, kw_only=True):
    """An input that was sent or refused: a row of the table `results`."""

    input_id: str
    external_id: str
    submission_id: str
    batch_id: str | None
    position: int
    file: Annotated[Json, Meta(description="As handed in, without the query of URLs and without passwords.")]
    metadata: Annotated[Json, Meta(description="As handed in.")]
    run_id: str | None
    status: str
    failure_reason: str | None
    failure_message: str | None
    credits: float | None
    source: Literal["webhook", "poll"] | None
    observed_at: Time | None
    settled_at: Time | None
    version: str
    run: Annotated[Json | UnsetType | None, Meta(description="The whole WorkflowRun, with `include=run`.")] = UNSET


class Result(ResultLine, frozen=True, kw_only=True):
    """An input with its whole run, and the attempt that it belongs to."""

    chunk: str
    attempt: int


class UnsentInput(Struct, frozen=True, kw_only=True):
    """An input without a row in results: it is WAITING, SENDING or IN_DOUBT."""

    input_id: str
    external_id: str
    submission_id: str
    chunk: str
    position: Annotated[int | None, Meta(description="Null if the queue has lost the input.")]
    attempt: int
    status: str
    waits_for: str
    until: Annotated[str | None, Meta(description="When that ends at the latest; null if nobody can say.")]
    reason: str
    what_to_do: Annotated[str | None, Meta(description="The command that helps; null if nothing need be done.")]


class Results(Struct, frozen=True):
    """A page of inputs; of those without a row only if that status is asked for."""

    results: list[Annotated[Any, any_of(ResultLine, UnsentInput)]]
    next_cursor: Cursor


#: One input: with a row in results, or without.
OneResult = Annotated[Any, any_of(Result, UnsentInput)]


class OverdueInput(Struct, frozen=True, kw_only=True):
    """An input that was sent and is open for too long."""

    input_id: str
    external_id: str
    submission_id: str
    batch_id: str | None
    run_id: str | None
    status: str
    sent_at: Time
    reason: Annotated[
        Literal["needs_review", "still_running", "deleted_upstream", "not_listed", "not_polled"],
        Meta(description="Why it is open."),
    ]


class WaitingChunk(Waiting, frozen=True, kw_only=True):
    """A chunk that was not sent and has waited longer than it should."""

    chunk: str
    submission_id: str
    workflow_id: str | None


class Overdue(Struct, frozen=True):
    """A page of overdue inputs; with the first page the chunks that wait too long."""

    inputs: list[OverdueInput]
    unsent: list[WaitingChunk]
    next_cursor: Cursor


class UnmatchedRun(Struct, frozen=True, kw_only=True):
    """A run that no input is known for."""

    run_id: str
    batch_id: str | None
    status: str
    reason: str
    metadata: Json | None
    first_seen: Time
    observed_at: Time
    source: Literal["webhook", "poll"]
    fingerprints: list[str]
    alarming: Annotated[bool, Meta(description="Whether it has waited longer than EVERYRUN_UNMATCHED_AFTER.")]


class UnmatchedCount(Struct, frozen=True):
    """How many runs have a reason, and how many of them are alarming."""

    runs: int
    alarming: int


class Unmatched(Struct, frozen=True):
    """A page of unmatched runs, and how many there are of each reason."""

    unmatched: list[UnmatchedRun]
    by_reason: dict[str, UnmatchedCount]
    next_cursor: Cursor


class Quarantined(Struct, frozen=True, kw_only=True):
    """A message that could not be understood."""

    source: str
    topic: str
    partition: int | None
    offset: int | None
    reason: str
    state: Literal["OPEN", "RETRIED", "DISCARDED"]
    bytes: int
    first_seen: Time
    decided_at: Time | None


class Decided(Struct, frozen=True):
    """A decision about it."""

    kind: str
    decided_by: str | None
    reason: str
    decided_at: Time


class QuarantinedMessage(Quarantined, frozen=True, kw_only=True):
    """A quarantined message with its bytes."""

    raw: Annotated[str, Meta(description="The bytes, base64.")]
    text: Annotated[str | None, Meta(description="The bytes as text; null if they are not UTF-8.")]
    headers: Annotated[list[list[str]], Meta(description="Name and value of each.")]
    decisions: list[Decided]


class QuarantinePage(Struct, frozen=True):
    """A page of messages."""

    messages: list[Quarantined]
    next_cursor: Cursor


class QuarantineReason(Struct, frozen=True):
    """How many messages have a reason."""

    topic: str
    reason: str
    state: str
    messages: int
    first_seen: Time
    last_seen: Time


class QuarantineReasons(Struct, frozen=True):
    """The hundred greatest."""

    reasons: list[QuarantineReason]
