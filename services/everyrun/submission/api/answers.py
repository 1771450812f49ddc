"""Types of the submission service's answers.

They only describe the answers in the OpenAPI document: the routes return plain dictionaries. This module has over 300
lines, because it is a list of types.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from everyrun.log.events import RetryFilter
from everyrun.openapi import Problem
from everyrun.submission.intake.accept import AcceptedSubmission
from everyrun.submission.intake.batch_registration import Registered
from everyrun.submission.intake.rows import BadRow
from everyrun.submission.retry.accept import NotChosen

__all__ = ["AcceptedSubmission", "Registered"]

Time = Annotated[str, Meta(description="RFC 3339, with a UTC offset.")]
NextCursor = Annotated[
    str | None, Meta(description="Pass this as `cursor` to get the next page; null on the last page.")
]


class Submitted(AcceptedSubmission, frozen=True, kw_only=True):
    """An accepted submission."""

    workflow_unchecked: Annotated[
        str | UnsetType, Meta(description="Why Extend could not be asked about the workflow; absent if it was asked.")
    ] = UNSET


class RegisteredBatch(Registered, frozen=True, kw_only=True):
    """A registered batch."""

    workflow_unchecked: Annotated[
        str | UnsetType, Meta(description="Why Extend could not be asked about the workflow; absent if it was asked.")
    ] = UNSET
    batch_unchecked: Annotated[
        str | UnsetType, Meta(description="Why Extend could not be asked about the batch; absent if it was asked.")
    ] = UNSET


class CheckedWorkflow(Struct, frozen=True, kw_only=True):
    """A workflow that Extend has, or about which Extend could not be asked."""

    workflow_id: str
    workflow_version: str | None
    workflow_unchecked: Annotated[
        str | UnsetType, Meta(description="Why Extend could not be asked about the workflow; absent if it was asked.")
    ] = UNSET


class CheckedObject(Struct, frozen=True):
    """An object that the submission service can read and presign."""

    object: Annotated[str, Meta(description="The address of the object.")]


class SyncedObject(Struct, frozen=True):
    """An object of a bucket or file of a folder that a sync submitted."""

    object: Annotated[str, Meta(description="The id of the input: the path relative to the source.")]
    version: Annotated[str, Meta(description="The ETag, or the size and time of a file, that was submitted last.")]
    submission_id: Annotated[str, Meta(description="The submission with this version.")]


class SyncedObjects(Struct, frozen=True):
    """A page of the objects that syncs of a source submitted, by name."""

    objects: list[SyncedObject]
    next_cursor: NextCursor


class SubmittedBefore(Problem, frozen=True, kw_only=True):
    """The Idempotency-Key was used before, for other content; or the same rows were submitted before."""

    submission_id: Annotated[str | UnsetType, Meta(description="The earlier submission with the same rows.")] = UNSET
    created_at: Time | UnsetType = UNSET


class BadUpload(Problem, frozen=True, kw_only=True):
    """The bad rows and what is wrong with each; nothing was accepted."""

    bad_rows: Annotated[int | UnsetType, Meta(description="Number of bad rows.")] = UNSET
    rows: Annotated[list[BadRow] | UnsetType, Meta(description="The first of the bad rows.")] = UNSET
    did_you_mean: Annotated[
        list[str] | UnsetType, Meta(description="Ids of similar workflows, or the versions that the workflow has.")
    ] = UNSET


class Submission(Struct, frozen=True, kw_only=True):
    """A submission in the queue."""

    submission_id: str
    workflow_id: str
    workflow_version: str | None
    priority: int | None
    expected: Annotated[int, Meta(description="Number of inputs.")]
    batches: Annotated[int, Meta(description="Number of chunks.")]
    registered_batch: Annotated[
        str | None, Meta(description="The id of the batch, if another caller sent it to Extend.")
    ]
    idempotency_key: str | None
    lost_inputs: Annotated[
        int, Meta(description="Number of inputs that were lost because the queue was restored from a backup.")
    ]
    lost_files: Annotated[
        int,
        Meta(
            description="Number of inputs whose query strings or passwords were lost because the queue was restored "
            "from a backup."
        ),
    ]
    created_at: Time
    chunks: Annotated[dict[str, int], Meta(description="Number of chunks by state.")]
    paused: Annotated[str | None, Meta(description="Why the submission or its workflow is paused; null if neither is.")]
    retry_at: Time | None
    held_up_by: Annotated[list[str], Meta(description="Why chunks of the submission are delayed or refused.")]


class Submissions(Struct, frozen=True):
    """A page of submissions, newest first."""

    submissions: list[Submission]
    next_cursor: NextCursor


class Doubt(Struct, frozen=True, kw_only=True):
    """A chunk whose outcome is unknown, or any chunk that was requested by its id."""

    chunk: str
    submission_id: str
    workflow_id: str
    state: str
    inputs: int
    attempt: int
    resends: Annotated[int, Meta(description="Number of resends after an attempt of unknown outcome.")]
    reason: str | None
    batch_id: str | None
    runs: Annotated[int, Meta(description="Number of unmatched runs that name the chunk.")]
    window_ends: Annotated[
        str | None, Meta(description="When the window for evidence ends; null if the chunk is not in doubt or held.")
    ]
    window_is_over: bool | None
    waits_for: str
    can: Annotated[list[Literal["adopt", "resend", "discard"]], Meta(description="Decisions that are possible now.")]
    with_force: Annotated[
        list[Literal["adopt", "resend", "discard"]],
        Meta(description="Decisions that are possible now only with `force`."),
    ]


class Doubts(Struct, frozen=True):
    """A page of chunks in doubt or held."""

    doubts: list[Doubt]
    next_cursor: NextCursor


class AttemptSummary(Struct, frozen=True, kw_only=True):
    """An attempt of the chunk, from the result tables."""

    attempt: int
    state: str
    batch_id: str | None
    reason: str | None
    requested_at: Time | None
    in_doubt_at: Time | None
    resent_at: Time | None
    returned_at: Time | None
    rejected_at: Time | None
    submitted_at: Time | None


class Evidence(Struct, frozen=True, kw_only=True):
    """An unmatched run that names the chunk."""

    run_id: str
    batch_id: str | None
    attempt: int | None
    status: str
    reason: str
    first_seen: Time


class DoubtDecision(Struct, frozen=True, kw_only=True):
    """A decision about the chunk."""

    kind: str
    attempt: int | None
    batch_id: str | None
    decided_by: Annotated[str | None, Meta(description="Who decided; null if Everyrun decided by its rules.")]
    reason: str
    decided_at: Time


class DoubtDetail(Doubt, frozen=True, kw_only=True):
    """A chunk, with its attempts, the unmatched runs that name it, and the decisions about it."""

    attempts: list[AttemptSummary]
    evidence: list[Evidence]
    decisions: list[DoubtDecision]


class PausedWorkflow(Struct, frozen=True):
    """A paused workflow."""

    workflow_id: str
    reason: str
    by: Annotated[
        str | None, Meta(description="Who paused the workflow; null if Everyrun did, because Extend blocked it.")
    ]
    since: Time


class PausedWorkflows(Struct, frozen=True):
    """A page of paused workflows."""

    workflows: list[PausedWorkflow]
    next_cursor: NextCursor


class PauseCounts(Struct, frozen=True):
    """The numbers of inputs of the workflow or submission that was paused or resumed."""

    submitted: Annotated[int, Meta(description="Inputs that Extend has accepted; a pause does not affect them.")]
    waiting: Annotated[int, Meta(description="Inputs that wait to be sent, including those that a pause delays.")]
    will_be_sent: Annotated[int, Meta(description="Waiting inputs that nothing delays.")]
    calling: Annotated[int, Meta(description="Inputs whose call is in progress.")]
    in_doubt: Annotated[
        int, Meta(description="Inputs of calls whose outcome is unknown, or that need a person's decision.")
    ]
    waits_for: Annotated[dict[str, int], Meta(description="Number of inputs without a result, by what they wait for.")]


class WorkflowPause(Struct, frozen=True):
    """A workflow: if it is paused now, and if this request changed that."""

    workflow_id: str
    paused: bool
    changed: bool
    inputs: PauseCounts


class SubmissionPause(Struct, frozen=True):
    """A submission: if it is paused now, and if this request changed that."""

    submission_id: str
    workflow_id: str | None
    paused: bool
    changed: bool
    inputs: PauseCounts


class CancellationCounts(Struct, frozen=True):
    """The numbers of inputs in a cancellation's scope, by what a cancellation does with them."""

    not_sent: Annotated[int, Meta(description="Inputs that wait to be sent. They are cancelled at once.")]
    calling: Annotated[
        int, Meta(description="Inputs whose call is in progress. If Extend accepts it, their runs are cancelled.")
    ]
    in_doubt: Annotated[
        int, Meta(description="Inputs of calls whose outcome is unknown. Everyrun first waits for evidence.")
    ]
    at_extend: Annotated[int, Meta(description="Inputs that Extend has accepted, and whose run has not ended.")]
    in_review: Annotated[
        int, Meta(description="Inputs whose run waits for a person's review. Extend does not cancel such runs.")
    ]
    settled: Annotated[int, Meta(description="Inputs that have their final status. They are not affected.")]


class CancellationPreview(Struct, frozen=True, kw_only=True):
    """The inputs that a cancellation affects, counted just before it."""

    cancellation_id: Annotated[
        str | None,
        Meta(description="The id of the cancellation; null for a dry run, or if there was nothing to cancel."),
    ]
    submission_id: str
    scope: Literal["submission", "batch", "inputs"]
    batch_id: Annotated[str | None, Meta(description="The batch, if the scope is a batch.")]
    inputs: CancellationCounts


class CancellationOutcomes(Struct, frozen=True, kw_only=True):
    """The outcomes of a cancellation so far. Those at Extend are numbers of runs; an input can have several."""

    cancelled_unsent: Annotated[int, Meta(description="Inputs that were cancelled before Extend accepted them.")]
    cancelled: Annotated[int, Meta(description="Runs that Extend has cancelled or is cancelling.")]
    finished: Annotated[int, Meta(description="Runs that had ended before they could be cancelled.")]
    in_review: Annotated[int, Meta(description="Runs that wait for a person's review, which Extend does not cancel.")]
    refused: Annotated[int, Meta(description="Runs in progress that Extend refused to cancel several times.")]
    gone: Annotated[int, Meta(description="Runs that Extend does not have.")]


class CancellationSummary(Struct, frozen=True, kw_only=True):
    """A cancellation: what it is about, and whether it has ended."""

    cancellation_id: str
    submission_id: str
    scope: Literal["submission", "batch", "inputs"]
    batch_id: Annotated[str | None, Meta(description="The batch, if the scope is a batch.")]
    by: str
    reason: str
    requested_at: Time
    ended_at: Annotated[Time | None, Meta(description="When every input was settled; null while it is in progress.")]
    problem: Annotated[str | None, Meta(description="Why runs cannot be cancelled now; null if nothing is wrong.")]


class Cancellation(CancellationSummary, frozen=True, kw_only=True):
    """A cancellation, with how far it is and its outcomes."""

    inputs: Annotated[CancellationCounts, Meta(description="The inputs as they are now.")]
    outcomes: CancellationOutcomes


class CancellationsPage(Struct, frozen=True):
    """A page of cancellations, newest first, each without counts."""

    cancellations: list[CancellationSummary]
    next_cursor: NextCursor


class MessageOutcome(Struct, frozen=True):
    """The outcome of a decision about a message."""

    source: str
    outcome: Literal["published", "dropped", "not-understood", "discarded", "not-open", "unknown"]
    detail: str


class Outcomes(Struct, frozen=True):
    """The outcome for each message, in the order of the request."""

    decided: list[MessageOutcome]


class RetryRefused(Problem, frozen=True, kw_only=True):
    """The reason why no input is sent again, and which inputs were found (absent if they were not looked for)."""

    submission_id: str | UnsetType = UNSET
    inputs: Annotated[int | UnsetType, Meta(description="Number of inputs that the filter chooses.")] = UNSET
    by_status: dict[str, int] | UnsetType = UNSET
    by_reason: dict[str, int] | UnsetType = UNSET
    credits: float | UnsetType = UNSET
    needs_files: Annotated[int | UnsetType, Meta(description="Number of these that need a new file.")] = UNSET
    needs_files_ids: list[str] | UnsetType = UNSET
    not_chosen: Annotated[int | UnsetType, Meta(description="Number of ids in the filter that are not sent again.")] = (
        UNSET
    )
    not_chosen_ids: list[NotChosen] | UnsetType = UNSET


class RetryOf(Struct, frozen=True, kw_only=True):
    """A retry of a submission."""

    retry: Annotated[int, Meta(description="Number of the retry in its submission, from 1.")]
    inputs: Annotated[int, Meta(description="Number of inputs that the retry sends again.")]
    filter: Annotated[RetryFilter, Meta(description="Which inputs were chosen.")]
    by: Annotated[str | None, Meta(description="Who requested it; null if Everyrun did, by the submission's rules.")]
    reason: str
    created_at: Time
    waiting: Annotated[int, Meta(description="Number of these inputs that are not sent yet.")]


class RetriesOf(Struct, frozen=True):
    """The retries of a submission, the oldest first."""

    retries: list[RetryOf]
