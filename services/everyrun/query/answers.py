"""Declare the responses of the query service as types, for the OpenAPI document.

The routes do not use these types: they return the rows unchanged, as read from Postgres. This module has over 300 lines
because it is a list of types.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from everyrun.openapi import any_of
from everyrun.query.estimate import Estimate
from everyrun.query.report import Polling
from everyrun.waiting import Waiting

Time = Annotated[str, Meta(description="A time as RFC 3339 text, with a UTC offset.")]
Cursor = Annotated[
    str | None,
    Meta(description="To get the next page, pass this as `cursor` with the same filters. Null on the last page."),
]
Json = dict[str, Any]
ByStatus = Annotated[dict[str, int], Meta(description="Number of inputs by status.")]


class Standing(Struct, frozen=True, kw_only=True):
    """The progress of a submission."""

    submission_id: str
    expected: Annotated[int, Meta(description="Number of inputs of the submission.")]
    settled: Annotated[
        int, Meta(description="Number of inputs that are PROCESSED, FAILED, CANCELLED, REJECTED or REFUSED.")
    ]
    open: Annotated[int, Meta(description="Number of inputs that are not settled.")]
    by_status: ByStatus
    waiting: Annotated[
        list[Waiting], Meta(description="For the inputs without a row in `results`: what they are waiting for.")
    ]
    in_transit: Annotated[
        int,
        Meta(description="Number of inputs whose latest state is in the queue and not yet in the result tables."),
    ]
    polling: Annotated[
        Polling | None,
        Meta(description="Missing results, and the next poll that looks for them. Null if no result is missing."),
    ]
    needs_person: Annotated[
        dict[str, int],
        Meta(
            description="Number of inputs or runs that only a person can move forward, by reason. `needs_review`: "
            "inputs whose run waits for a review at Extend. `ambiguous_metadata`: runs of a registered batch whose "
            "metadata fit several inputs."
        ),
    ]

    will_retry: Annotated[
        bool,
        Meta(description="True if the submission has automatic retries that may still send failed inputs again."),
    ]
    estimate: Annotated[
        Estimate,
        Meta(
            description="When the inputs that need no person will be settled, what delays them, and the credits. "
            "`basis`: `rate` (the results of the last five minutes) or `plan` (`EVERYRUN_FILES_PER_MINUTE`)."
        ),
    ]


class Imbalance(Struct, frozen=True, kw_only=True):
    """Two numbers that should agree and do not."""

    what: Annotated[str, Meta(description="What is counted.")]
    expected: Annotated[Any, Meta(description="A number, or an object that maps each status to a number of inputs.")]
    found: Annotated[Any, Meta(description="What was found instead, in the same form.")]
    batch: Annotated[
        str | UnsetType,
        Meta(description="The batch that the numbers are about. Absent if they are about the submission."),
    ] = UNSET


class Report(Standing, frozen=True, kw_only=True):
    """The progress of a submission, its problems, and a check that every number agrees."""

    workflow_id: str
    workflow_version: str | None
    created_at: Time
    unmatched: Annotated[
        int, Meta(description="Number of runs in the submission's batches that belong to no known input.")
    ]
    unmatched_by_reason: dict[str, int]
    duplicates: Annotated[
        int, Meta(description="Number of duplicate runs: further runs of the try that an input shows.")
    ]
    superseded: Annotated[int, Meta(description="Number of runs of earlier tries of inputs that were retried.")]
    pending_deliveries: Annotated[
        int,
        Meta(
            description="Number of runs whose webhook contained only a link to its payload, and whose payload "
            "has not been fetched yet."
        ),
    ]
    overdue: Annotated[int, Meta(description="Number of inputs that have been open for too long.")]
    overdue_by_reason: dict[str, int]
    batches: Annotated[dict[str, int], Meta(description="Number of attempts by state.")]
    balanced: Annotated[bool, Meta(description="True if all numbers agree and no input is in transit.")]
    imbalances: list[Imbalance]


class BatchLine(Struct, frozen=True, kw_only=True):
    """An attempt: a row of the view `report`.

    It contains the attempt's stored counters, and the same numbers counted again from the rows. Both must agree.
    """

    submission_id: str
    chunk: str
    attempt: int
    batch_id: str | None
    state: str
    expected: int
    inputs: Annotated[
        int,
        Meta(
            description="Number of inputs that belong to this attempt. An input belongs to the attempt that "
            "started its current run."
        ),
    ]
    settled: int
    counts: ByStatus
    runs_observed: int
    duplicates: int
    superseded: int
    unmatched: int
    runs_in_results: int
    runs_in_duplicates: int
    runs_in_superseded: int
    counted_rows: Annotated[
        dict[str, int],
        Meta(description="Number of rows in the table `results` by status, counted when the request was made."),
    ]
    balanced: bool


class Batch(BatchLine, frozen=True, kw_only=True):
    """A batch, with its times."""

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
    """An input that was submitted or refused: a row of the table `results`."""

    input_id: str
    external_id: str
    submission_id: str
    batch_id: str | None
    position: int
    file: Annotated[
        Json, Meta(description="The file as submitted, without passwords, and without the query of its URL.")
    ]
    metadata: Annotated[Json, Meta(description="The metadata as submitted.")]
    run_id: str | None
    status: str
    failure_reason: str | None
    failure_message: str | None
    credits: float | None
    source: Literal["webhook", "poll"] | None
    observed_at: Time | None
    settled_at: Time | None
    version: str
    run: Annotated[
        Json | UnsetType | None,
        Meta(
            description="The whole WorkflowRun; null if there is none yet. In lists, this field is present only with "
            "`include=run`."
        ),
    ] = UNSET


class Result(ResultLine, frozen=True, kw_only=True):
    """An input with its whole run, and the attempt that sent it."""

    chunk: str
    attempt: int


class UnsentInput(Struct, frozen=True, kw_only=True):
    """An input that has no row in the table `results` yet, because it is WAITING, SENDING or IN_DOUBT."""

    input_id: str
    external_id: str
    submission_id: str
    chunk: str
    position: Annotated[
        int | None,
        Meta(
            description="The input's position in the submission, from 1. Null if the queue lost the input because an "
            "old backup was restored."
        ),
    ]
    attempt: int
    status: str
    waits_for: str
    until: Annotated[str | None, Meta(description="The latest time at which the wait ends; null if unknown.")]
    reason: str
    what_to_do: Annotated[str | None, Meta(description="The command that helps; null if nothing is needed.")]


class Results(Struct, frozen=True):
    """A page of inputs. Inputs without a row in `results` are listed only if `status` asks for them."""

    results: list[Annotated[Any, any_of(ResultLine, UnsentInput)]]
    next_cursor: Cursor


class ResultCounts(Struct, frozen=True, kw_only=True):
    """The number of inputs of a submission that fit a filter."""

    submission_id: str
    total: int
    by_status: ByStatus
    by_failure_reason: Annotated[
        dict[str, int], Meta(description="Number of the same inputs by failure reason, if they have one.")
    ]
    not_searched: Annotated[
        int,
        Meta(
            description="Number of inputs that were not sent, and to which the filter was therefore not applied. 0 if "
            "the only filter is the status, or if there is none."
        ),
    ]


#: One input, either with a row in the table results or without one.
OneResult = Annotated[Any, any_of(Result, UnsentInput)]


class Decision(Struct, frozen=True, kw_only=True):
    """A decision of a person or a rule: a row of the table `decisions`."""

    event_id: str
    kind: Annotated[str, Meta(description="Type of the event, for example inputs-retried or submission-paused.")]
    workflow_id: str | None
    submission_id: str | None
    chunk: str | None
    attempt: int | None
    batch_id: str | None
    source: Annotated[
        str | None, Meta(description="The quarantined message, or the id of the cancellation, token or receiver.")
    ]
    decided_by: Annotated[str | None, Meta(description="Who decided; null if a rule of Everyrun did.")]
    reason: str
    decided_at: Time


class Decisions(Struct, frozen=True):
    """A page of decisions, the newest first."""

    decisions: list[Decision]
    next_cursor: Cursor


class AttemptOfTry(Struct, frozen=True, kw_only=True):
    """An attempt that sent an input, and its run of this input."""

    chunk: str
    attempt: int
    state: str
    reason: str | None
    batch_id: str | None
    sent_at: Time | None
    run_id: str | None
    status: Annotated[str | None, Meta(description="Extend's status of the run; null if there is no run.")]
    failure_reason: str | None
    failure_message: str | None
    credits: float | None
    settled_at: Time | None
    current: Annotated[bool, Meta(description="True if `results` shows this run.")]


class Try(Struct, frozen=True, kw_only=True):
    """A try of an input: the first one, or one that a retry made."""

    number: Annotated[int, Meta(description="Number of the try, from 1.")] = field(name="try")
    retry: Annotated[int, Meta(description="Number of the retry in the submission; 0 for the first try.")]
    requested_at: Time | None
    by: Annotated[str | None, Meta(description="Who requested the retry; null for the first try, or if Everyrun did.")]
    reason: str | None
    attempts: Annotated[list[AttemptOfTry], Meta(description="Empty if the try waits to be sent.")]


class Tries(Struct, frozen=True):
    """Every try of an input, the oldest first."""

    input_id: str
    tries: list[Try]


class OverdueInput(Struct, frozen=True, kw_only=True):
    """An input that was sent and has been open for too long."""

    input_id: str
    external_id: str
    submission_id: str
    batch_id: str | None
    run_id: str | None
    status: str
    sent_at: Time
    reason: Annotated[
        Literal["needs_review", "still_running", "deleted_upstream", "not_listed", "not_polled"],
        Meta(description="Why it is still open."),
    ]


class WaitingChunk(Waiting, frozen=True, kw_only=True):
    """A chunk that was not sent and has waited for too long."""

    chunk: str
    submission_id: str
    workflow_id: str | None


class Overdue(Struct, frozen=True):
    """A page of overdue inputs. The first page also has the unsent chunks that have waited for too long."""

    inputs: list[OverdueInput]
    unsent: list[WaitingChunk]
    next_cursor: Cursor


class UnmatchedRun(Struct, frozen=True, kw_only=True):
    """A run without a known input."""

    run_id: str
    batch_id: str | None
    status: str
    reason: str
    metadata: Json | None
    first_seen: Time
    observed_at: Time
    source: Literal["webhook", "poll"]
    fingerprints: list[str]
    alarming: Annotated[
        bool, Meta(description="True if the run was first seen longer than EVERYRUN_UNMATCHED_AFTER ago.")
    ]


class UnmatchedCount(Struct, frozen=True):
    """The number of unmatched runs with the same reason, and how many of them are alarming."""

    runs: int
    alarming: int


class Unmatched(Struct, frozen=True):
    """A page of unmatched runs, and their number by reason."""

    unmatched: list[UnmatchedRun]
    by_reason: dict[str, UnmatchedCount]
    next_cursor: Cursor


class Quarantined(Struct, frozen=True, kw_only=True):
    """A quarantined message: one that could not be processed."""

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
    """A decision about a quarantined message."""

    kind: str
    decided_by: str | None
    reason: str
    decided_at: Time


class QuarantinedMessage(Quarantined, frozen=True, kw_only=True):
    """A quarantined message with its bytes."""

    raw: Annotated[str, Meta(description="The bytes of the message, as base64.")]
    text: Annotated[str | None, Meta(description="The bytes as text; null if they are not UTF-8.")]
    headers: Annotated[list[list[str]], Meta(description="The headers of the message, each as [name, value].")]
    decisions: list[Decided]


class QuarantinePage(Struct, frozen=True):
    """A page of quarantined messages."""

    messages: list[Quarantined]
    next_cursor: Cursor


class QuarantineReason(Struct, frozen=True):
    """The number of messages with the same topic, reason and state."""

    topic: str
    reason: str
    state: str
    messages: int
    first_seen: Time
    last_seen: Time


class QuarantineReasons(Struct, frozen=True):
    """The hundred most frequent reasons."""

    reasons: list[QuarantineReason]
