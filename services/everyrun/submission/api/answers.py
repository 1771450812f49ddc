"""What the submission service answers, as types. They are for the OpenAPI document: routes answer what they read."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from everyrun.openapi import Problem
from everyrun.submission.batch_registration import Registered
from everyrun.submission.intake.accept import Accepted
from everyrun.submission.intake.rows import BadRow

__all__ = ["Accepted", "Registered"]

Time = Annotated[str, Meta(description="RFC 3339, with its offset.")]
NextCursor = Annotated[str | None, Meta(description="Give it as `cursor` for the next page; null on the last.")]


class Submitted(Accepted, frozen=True, kw_only=True):
    """What was taken in."""

    workflow_unchecked: Annotated[
        str | UnsetType, Meta(description="Why Extend could not be asked whether it has the workflow.")
    ] = UNSET


class RegisteredBatch(Registered, frozen=True, kw_only=True):
    """What is accounted for."""

    workflow_unchecked: Annotated[
        str | UnsetType, Meta(description="Why Extend could not be asked whether it has the workflow.")
    ] = UNSET


class CheckedWorkflow(Struct, frozen=True, kw_only=True):
    """A workflow that Extend has, or could not be asked about."""

    workflow_id: str
    workflow_version: str | None
    workflow_unchecked: Annotated[
        str | UnsetType, Meta(description="Why Extend could not be asked whether it has the workflow.")
    ] = UNSET


class SubmittedBefore(Problem, frozen=True, kw_only=True):
    """The Idempotency-Key, or the very same rows, were submitted before."""

    submission_id: Annotated[str | UnsetType, Meta(description="The submission with the same rows.")] = UNSET
    created_at: Time | UnsetType = UNSET


class BadUpload(Problem, frozen=True, kw_only=True):
    """What is wrong with which row; nothing was taken in."""

    bad_rows: Annotated[int | UnsetType, Meta(description="How many rows are bad.")] = UNSET
    rows: Annotated[list[BadRow] | UnsetType, Meta(description="The first of them.")] = UNSET
    did_you_mean: Annotated[
        list[str] | UnsetType, Meta(description="Workflows with a similar id, or the versions that the workflow has.")
    ] = UNSET


class Submission(Struct, frozen=True, kw_only=True):
    """A submission as the queue has it."""

    submission_id: str
    workflow_id: str
    workflow_version: str | None
    priority: int | None
    expected: Annotated[int, Meta(description="Its inputs.")]
    batches: Annotated[int, Meta(description="The chunks that it was cut into.")]
    registered_batch: Annotated[str | None, Meta(description="The batch at Extend, if somebody else submitted it.")]
    idempotency_key: str | None
    lost_inputs: Annotated[int, Meta(description="Inputs that a restored backup of the queue does not have.")]
    lost_files: Annotated[int, Meta(description="Inputs whose links or passwords a restored backup does not have.")]
    created_at: Time
    chunks: Annotated[dict[str, int], Meta(description="Its chunks by state.")]
    paused: Annotated[str | None, Meta(description="Why its workflow or the submission itself is paused.")]
    retry_at: Time | None
    held_up_by: Annotated[list[str], Meta(description="What stands in the way of its chunks.")]


class Submissions(Struct, frozen=True):
    """A page of submissions, newest first."""

    submissions: list[Submission]
    next_cursor: NextCursor


class Doubt(Struct, frozen=True, kw_only=True):
    """A chunk whose outcome is unknown, or that a person asked for."""

    chunk: str
    submission_id: str
    workflow_id: str
    state: str
    inputs: int
    attempt: int
    resends: Annotated[int, Meta(description="Attempts that were given up.")]
    reason: str | None
    batch_id: str | None
    runs: Annotated[int, Meta(description="Runs that name the chunk and match no input.")]
    window_ends: Annotated[str | None, Meta(description="Until when evidence may come; null if it is not in doubt.")]
    window_is_over: bool | None
    waits_for: str
    can: Annotated[list[Literal["adopt", "resend", "discard"]], Meta(description="Decisions that are possible.")]
    with_force: Annotated[list[Literal["adopt", "resend", "discard"]], Meta(description="Those that need `force`.")]


class Doubts(Struct, frozen=True):
    """A page of chunks in doubt."""

    doubts: list[Doubt]
    next_cursor: NextCursor


class Tried(Struct, frozen=True, kw_only=True):
    """An attempt at the chunk, by the tables."""

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
    """A run that names the chunk."""

    run_id: str
    batch_id: str | None
    attempt: int | None
    status: str
    reason: str
    first_seen: Time


class DoubtDecision(Struct, frozen=True, kw_only=True):
    """What was decided of the chunk."""

    kind: str
    attempt: int | None
    batch_id: str | None
    decided_by: Annotated[str | None, Meta(description="Null if Everyrun decided by its own rules.")]
    reason: str
    decided_at: Time


class OneDoubt(Doubt, frozen=True, kw_only=True):
    """A chunk with its attempts, the runs that name it, and the decisions taken."""

    attempts: list[Tried]
    evidence: list[Evidence]
    decisions: list[DoubtDecision]


class PausedWorkflow(Struct, frozen=True):
    """A workflow that nothing is sent for."""

    workflow_id: str
    reason: str
    by: Annotated[str | None, Meta(description="Null if Extend refused.")]
    since: Time


class PausedWorkflows(Struct, frozen=True):
    """A page of them."""

    workflows: list[PausedWorkflow]
    next_cursor: NextCursor


class Stopped(Struct, frozen=True):
    """How many inputs of what was paused or resumed stand where."""

    sent: Annotated[int, Meta(description="Extend has them; a pause stops none of them.")]
    waiting: int
    will_be_sent: Annotated[int, Meta(description="Of those that wait: nothing stops them.")]
    calling: Annotated[int, Meta(description="Their call is in progress.")]
    in_doubt: Annotated[int, Meta(description="The outcome of their call is unknown, or a person must decide.")]
    waits_for: Annotated[dict[str, int], Meta(description="Those without a result, by what they wait for.")]


class WorkflowPause(Struct, frozen=True):
    """Whether a workflow is paused now, and whether this call changed that."""

    workflow_id: str
    paused: bool
    changed: bool
    inputs: Stopped


class SubmissionPause(Struct, frozen=True):
    """Whether a submission is paused now, and whether this call changed that."""

    submission_id: str
    workflow_id: str | None
    paused: bool
    changed: bool
    inputs: Stopped


class MessageOutcome(Struct, frozen=True):
    """What became of a message."""

    source: str
    outcome: Literal["published", "dropped", "not-understood", "discarded", "not-open", "unknown"]
    detail: str


class Outcomes(Struct, frozen=True):
    """What became of each message, in the order that they were given."""

    decided: list[MessageOutcome]
