"""Define the events as Python types, from which the JSON Schemas in ``schemas/`` are generated.

Times are RFC 3339 UTC text with milliseconds (``2026-02-09T10:00:00.000Z``), as Extend writes them. An event's own
time, id, type and subject are in its CloudEvents headers (:mod:`everyrun.log.cloudevents`), not in its value.

This module has over 300 lines, so that all events are in one place.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct

InputId = Annotated[str, Meta(description="<submission id>:<external id>")]
ExternalId = Annotated[
    str, Meta(description="The caller's own id of the input; without one, the input's position as text.")
]
Chunk = Annotated[
    str,
    Meta(
        description="Id of the chunk, whose inputs are sent to Extend in one call. If the chunk is a part of a chunk "
        "that was cut, its id has a hyphen and the number of the part. If a retry made the chunk, its id has -r and "
        "the number of the retry. The Kafka key is the id up to its first hyphen, so that all of these share a key."
    ),
]
Attempt = Annotated[int, Meta(ge=1, description="Number of the attempt to send the chunk, from 1.")]
AttemptOrNone = Annotated[
    int, Meta(ge=0, description="Number of the last attempt to send the chunk; 0 if the chunk was never sent.")
]
CancellationId = Annotated[str, Meta(description="Id of the cancellation: can_ and 26 characters that sort by time.")]
Decider = Annotated[str | None, Meta(description="Who decided; null if Everyrun did, by its own rules.")]
Time = Annotated[str, Meta(description="RFC 3339 UTC with milliseconds.")]
SubmissionId = Annotated[str, Meta(description="Submission id: sub_ and 26 characters that sort by time.")]
WorkflowId = Annotated[str, Meta(description="Extend's id of the workflow.")]
WorkflowVersion = Annotated[str | None, Meta(description="The requested version; null for the newest published one.")]
Priority = Annotated[int, Meta(description="Extend's priority, 1 to 100; lower numbers run first.")]
BatchId = Annotated[str, Meta(description="Extend's id of the batch.")]
Inputs = Annotated[list["Input"], Meta(description="The inputs, in the order in which they were sent.")]
_REFUSED_STATUS = (
    "HTTP status of Extend's answer. If Everyrun did not call Extend, because it could not read an object: 403, 404 or "
    "412, for the codes below."
)
Code = Annotated[
    str,
    Meta(
        description="Extend's code for the error. If Everyrun did not call Extend, because it could not read an object "
        "in a bucket: OBJECT_DENIED, OBJECT_NOT_FOUND or OBJECT_CHANGED."
    ),
]
Message = Annotated[str, Meta(description="Extend's message for the error, or Everyrun's about an object.")]
Source = Annotated[Literal["webhook", "poll"], Meta(description="How Everyrun learned of this state of the run.")]
Reason = Annotated[str, Meta(description="The reason for the decision.")]
FileJson = Annotated[
    msgspec.Raw,
    Meta(
        description="The file as submitted, without the query string of a URL and without a password.",
        extra_json_schema={"type": "object"},
    ),
]
MetadataJson = Annotated[
    msgspec.Raw, Meta(description="The metadata as submitted.", extra_json_schema={"type": "object"})
]

#: Maximum number of characters of an Idempotency-Key.
MAX_IDEMPOTENCY_KEY = 255


class Input(Struct, frozen=True, omit_defaults=True):
    """An input of a chunk, as it was submitted, without query strings of URLs and without passwords."""

    input_id: InputId
    external_id: ExternalId
    position: Annotated[int, Meta(ge=1, description="Position in the submission, from 1.")]
    file: Annotated[
        dict[str, Any],
        Meta(
            description="The file, without the query string of a URL and without a password. An object in a bucket is "
            "shown by its address and its ETag."
        ),
    ]
    metadata: Annotated[dict[str, Any], Meta(description="The caller's metadata, without Everyrun's reserved key.")]


class SubmissionRules(Struct, frozen=True, omit_defaults=True):
    """The automatic reactions of Everyrun if inputs of a submission fail."""

    retries: Annotated[int, Meta(ge=0, description="Maximum number of automatic new tries of an input that fails.")] = 0
    retry_reasons: Annotated[
        list[str], Meta(description="Retry automatically only for these failure reasons; empty for all.")
    ] = []
    stop_after_failures: Annotated[
        int | None, Meta(description="Pause the submission if more inputs than this are FAILED or REFUSED.")
    ] = None


class SubmissionAccepted(Struct, frozen=True, tag="submission-accepted", tag_field="type"):
    """A submission was accepted. Key: submission id. On ``batches``."""

    submission_id: SubmissionId
    workflow_id: WorkflowId
    workflow_version: WorkflowVersion
    priority: Priority
    expected: Annotated[int, Meta(ge=1, description="Number of inputs in the submission.")]
    batches: Annotated[int, Meta(ge=1, description="Number of chunks that the submission was cut into.")]
    idempotency_key: Annotated[
        str,
        Meta(
            max_length=MAX_IDEMPOTENCY_KEY,
            description="The Idempotency-Key of the upload, or the submission id if the upload had no key.",
        ),
    ]
    content_hash: Annotated[
        str,
        Meta(
            pattern="^[0-9a-f]{64}$",
            description="SHA-256, as hex, of the workflow, the priority and the inputs as they are in the log: without "
            "secrets.",
        ),
    ]
    created_at: Time
    rules: Annotated[
        SubmissionRules | None, Meta(description="What Everyrun does by itself if inputs fail; null for nothing.")
    ] = None
    max_open_inputs: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(
            description="Maximum number of the submission's inputs that may be open at Extend at the same time. Null "
            "for no maximum of its own."
        ),
    ] = None
    synced_source: Annotated[
        str | None,
        Meta(description="The bucket or folder that a sync read; null for a submission that is not of a sync."),
    ] = None


class BatchRequested(Struct, frozen=True, tag="batch-requested", tag_field="type"):
    """An attempt to send a chunk is about to begin. Key: chunk. On ``batches``, before Extend is called."""

    submission_id: SubmissionId
    chunk: Chunk
    attempt: Attempt
    installation: Annotated[str, Meta(description="The installation of Everyrun that sends the chunk.")]
    workflow_id: WorkflowId
    workflow_version: WorkflowVersion
    priority: Priority
    deadline: Annotated[str, Meta(description="The call does not begin after this time.")]
    inputs: Annotated[list[Input], Meta(description="The inputs, in the order in which they are sent.")]


class BatchReturned(Struct, frozen=True, tag="batch-returned", tag_field="type"):
    """Extend did not accept the attempt for now (429, or no byte was sent): the chunk is sent again later.

    Key: chunk.
    """

    submission_id: SubmissionId
    chunk: Chunk
    attempt: Attempt
    reason: Annotated[str, Meta(description="Why the attempt was not accepted, and what the next attempt waits for.")]


class BatchInDoubt(Struct, frozen=True, tag="batch-in-doubt", tag_field="type"):
    """The outcome of the attempt is unknown until evidence arrives. Key: chunk."""

    submission_id: SubmissionId
    chunk: Chunk
    attempt: Attempt
    reason: Annotated[str, Meta(description="What happened to the call.")]


class DoubtResent(Struct, frozen=True, tag="doubt-resent", tag_field="type"):
    """The chunk of an attempt in doubt will be sent again, in another attempt. Key: chunk.

    Either no evidence arrived within the window, or a person decided to send the chunk again.
    """

    submission_id: SubmissionId
    chunk: Chunk
    attempt: Attempt
    reason: Reason
    resends: Annotated[int, Meta(ge=1, description="Number of attempts given up for the chunk, including this one.")]
    by: Decider


class DoubtAdopted(Struct, frozen=True, tag="doubt-adopted", tag_field="type"):
    """A person named the batch that the attempt became, and a run of that batch confirmed it. Key: chunk.

    This event has the same effect as batch-submitted: each input now has a run.
    """

    submission_id: SubmissionId
    chunk: Chunk
    attempt: Attempt
    batch_id: BatchId
    workflow_id: WorkflowId
    workflow_version: WorkflowVersion
    priority: Priority
    evidence: Annotated[str, Meta(description="'run <id>': the run whose metadata named the attempt.")]
    adopted_at: Time
    by: Annotated[str, Meta(description="Who decided.")]
    reason: Reason
    inputs: Inputs


class DoubtDiscarded(Struct, frozen=True, tag="doubt-discarded", tag_field="type"):
    """A person decided not to send the chunk again: its inputs are REFUSED, with the reason DISCARDED. Key: chunk.

    If a run of the attempt appears later, batch-submitted follows and the inputs get their runs' statuses.
    """

    submission_id: SubmissionId
    chunk: Chunk
    attempt: Attempt
    workflow_id: WorkflowId
    workflow_version: WorkflowVersion
    priority: Priority
    discarded_at: Time
    by: Annotated[str, Meta(description="Who decided.")]
    reason: Reason
    inputs: Inputs


class BatchSubmitted(Struct, frozen=True, tag="batch-submitted", tag_field="type"):
    """Extend accepted the attempt as a batch: each input now has a run. Key: chunk."""

    submission_id: SubmissionId
    chunk: Chunk
    attempt: Attempt
    batch_id: BatchId
    workflow_id: WorkflowId
    workflow_version: WorkflowVersion
    priority: Priority
    evidence: Annotated[str, Meta(description="'answer', or 'run <id>' if a run proved it because no answer arrived.")]
    submitted_at: Time
    inputs: Inputs


class BatchRejected(Struct, frozen=True, tag="batch-rejected", tag_field="type"):
    """Extend refused the attempt, and a retry cannot help: its inputs are REFUSED. Key: chunk."""

    submission_id: SubmissionId
    chunk: Chunk
    attempt: Attempt
    workflow_id: WorkflowId
    workflow_version: WorkflowVersion
    priority: Priority
    status: Annotated[int, Meta(description=_REFUSED_STATUS)]
    code: Code
    message: Message
    rejected_at: Time
    inputs: Inputs


class Part(Struct, frozen=True):
    """A part that a chunk was cut into: a chunk of its own, with a range of the inputs."""

    chunk: Annotated[str, Meta(description="<id of the chunk that was cut>-<number from 1>")]
    first_position: Annotated[int, Meta(ge=1, description="Position in the queue of the first input of the part.")]
    last_position: Annotated[int, Meta(ge=1, description="Position in the queue of the last input of the part.")]


class BatchCut(Struct, frozen=True, tag="batch-cut", tag_field="type"):
    """A chunk was cut into parts, which are chunks of their own. Extend created nothing for the attempt. Key: chunk.

    Either Extend refused the attempt because of some of its inputs. The parts are then sent, so that a bad input does
    not affect the others. Or only some inputs of the chunk were cancelled: then the code is CANCELLED_IN_PART, and the
    parts with the other inputs are sent.
    """

    submission_id: SubmissionId
    chunk: Chunk
    attempt: AttemptOrNone
    status: Annotated[int, Meta(description=f"{_REFUSED_STATUS} 0 if only some of its inputs were cancelled.")]
    code: Code
    message: Message
    input_ids: Annotated[
        list[InputId],
        Meta(description="Ids of the inputs, in the order of the chunk. The parts keep this order."),
    ]
    parts: Annotated[list[Part], Meta(description="Two or more parts; each input is in exactly one of them.")]


class PositionRange(Struct, frozen=True):
    """A range of inputs of a submission."""

    first_position: Annotated[int, Meta(ge=1, description="Position in the submission of the first input.")]
    last_position: Annotated[int, Meta(ge=1, description="Position in the submission of the last input.")]


class CancellationRequested(Struct, frozen=True, tag="cancellation-requested", tag_field="type"):
    """A person cancelled inputs of a submission. Key: submission id. On ``batches``.

    None of these inputs is sent after this event, except in calls that were in progress. The runs that the inputs
    already have at Extend are cancelled there. Inputs that are tried again later have new positions, so the
    cancellation does not apply to them.
    """

    cancellation_id: CancellationId
    submission_id: SubmissionId
    scope: Annotated[
        Literal["submission", "batch", "inputs"],
        Meta(description="What the person named: the submission, a batch, or single inputs."),
    ]
    batch_id: Annotated[str | None, Meta(description="The batch that the person named; null for other scopes.")]
    positions: Annotated[list[PositionRange], Meta(description="The inputs, as ranges that do not touch each other.")]
    requested_at: Time
    by: Annotated[str, Meta(description="Who decided.")]
    reason: Reason


class BatchCancelled(Struct, frozen=True, tag="batch-cancelled", tag_field="type"):
    """A chunk was cancelled before Extend accepted it: its inputs are CANCELLED, with the reason CANCELLED_UNSENT.

    Key: chunk. The chunk is not sent again. If a run of an earlier attempt appears later, batch-submitted follows and
    the inputs get their runs' statuses.
    """

    submission_id: SubmissionId
    chunk: Chunk
    attempt: AttemptOrNone
    workflow_id: WorkflowId
    workflow_version: WorkflowVersion
    priority: Priority
    cancellation_id: CancellationId
    cancelled_at: Time
    by: Annotated[str, Meta(description="Who decided.")]
    reason: Reason
    inputs: Annotated[list[Input], Meta(description="The inputs, in the order of the submission.")]


class BatchRegistered(Struct, frozen=True, tag="batch-registered", tag_field="type"):
    """A batch that another caller submitted to Extend was registered here, as a submission of its own.

    Its runs have no reserved key: they are matched by the fingerprint of their metadata. Key: batchId. On ``batches``.
    """

    submission_id: SubmissionId
    chunk: Chunk
    attempt: Attempt
    batch_id: BatchId
    workflow_id: WorkflowId
    workflow_version: WorkflowVersion
    registered_at: Time
    inputs: Annotated[
        list[Input], Meta(description="The inputs of the batch, as the other caller sent them to Extend.")
    ]


class RetryFilter(Struct, frozen=True, omit_defaults=True):
    """Chooses the settled inputs of a submission that a retry sends again: they meet every condition that is given."""

    statuses: Annotated[list[str], Meta(description="Only inputs with one of these statuses; empty for all.")] = []
    reasons: Annotated[
        list[str], Meta(description="Only inputs with one of these values of failure_reason; empty for all.")
    ] = []
    ids: Annotated[
        list[str],
        Meta(description="Only inputs with one of these external ids; empty for all. At most a hundred are shown."),
    ] = []
    where: Annotated[
        dict[str, str],
        Meta(description="Only inputs whose metadata have these values, as text; a key may be a path: customer.id."),
    ] = {}
    limit: Annotated[int | None, Meta(description="At most so many inputs, in the order of their ids.")] = None


class InputsRetried(Struct, frozen=True, tag="inputs-retried", tag_field="type"):
    """A retry gives inputs of one original chunk a new try, in a chunk of its own. Key: chunk. On ``batches``.

    Until the new try is accepted by Extend, the inputs are WAITING. The runs of their earlier tries are superseded.
    """

    submission_id: SubmissionId
    chunk: Chunk
    retry: Annotated[int, Meta(ge=1, description="Number of the retry in the submission, from 1.")]
    workflow_id: WorkflowId
    first_position: Annotated[
        int,
        Meta(ge=1, description="Position of the first of these inputs in the queue; the others follow it in order."),
    ]
    total: Annotated[int, Meta(ge=1, description="Number of inputs of the whole retry, in all its chunks.")]
    filter: Annotated[RetryFilter, Meta(description="Which inputs were chosen.")]
    requested_at: Time
    by: Decider
    reason: Reason
    inputs: Annotated[list[Input], Meta(description="The inputs, in the order in which they will be sent.")]


class WorkflowPaused(Struct, frozen=True, tag="workflow-paused", tag_field="type"):
    """The workflow's chunks wait until the workflow is resumed. Key: workflow id. On ``batches``."""

    workflow_id: WorkflowId
    reason: Reason
    by: Decider


class WorkflowResumed(Struct, frozen=True, tag="workflow-resumed", tag_field="type"):
    """The workflow's pause has ended: its waiting chunks are sent. Key: workflow id. On ``batches``."""

    workflow_id: WorkflowId
    reason: Reason
    by: Decider


class SubmissionPaused(Struct, frozen=True, tag="submission-paused", tag_field="type"):
    """The submission's chunks wait until the submission is resumed. Key: submission id. On ``batches``."""

    submission_id: SubmissionId
    reason: Reason
    by: Decider


class SubmissionResumed(Struct, frozen=True, tag="submission-resumed", tag_field="type"):
    """The submission's pause has ended: its waiting chunks are sent. Key: submission id. On ``batches``."""

    submission_id: SubmissionId
    reason: Reason
    by: Decider


class TokenCreated(Struct, frozen=True, tag="token-created", tag_field="type"):
    """An API token was created. Key: token id. On ``batches``. The event holds neither the token nor its hash."""

    token_id: Annotated[str, Meta(description="The part of the token before its last underscore, which is not secret.")]
    name: Annotated[str, Meta(description="Who uses the token, or what it is used for.")]
    scopes: Annotated[list[str], Meta(description="What the token allows: submit, read, operate.")]
    created_at: Time
    expires_at: Annotated[Time | None, Meta(description="When it expires; null for never.")]
    by: Annotated[str, Meta(description="Who created it.")]


class TokenRevoked(Struct, frozen=True, tag="token-revoked", tag_field="type"):
    """An API token was revoked. Key: token id. On ``batches``.

    If the database is restored from an older backup, the token is revoked again by this event.
    """

    token_id: Annotated[str, Meta(description="The part of the token before its last underscore, which is not secret.")]
    name: Annotated[str, Meta(description="Who used the token, or what it was used for.")]
    revoked_at: Time
    by: Annotated[str, Meta(description="Who revoked it.")]
    reason: Reason


class ReceiverChanged(Struct, frozen=True, tag="receiver-changed", tag_field="type"):
    """A person changed a receiver of notifications. Key: receiver id. On ``batches``. No secret is in the event."""

    receiver_id: Annotated[str, Meta(description="The receiver: rcv_ and 20 characters.")]
    change: Annotated[
        Literal["added", "paused", "resumed", "secret-rotated", "removed"], Meta(description="What was changed.")
    ]
    url: Annotated[str, Meta(description="The receiver's address, without its query.")]
    events: Annotated[list[str], Meta(description="The events that the receiver gets.")]
    workflows: Annotated[
        list[str], Meta(description="The workflows whose events the receiver gets; empty for all workflows.")
    ]
    changed_at: Time
    by: Annotated[str, Meta(description="Who changed it.")]


class RunObserved(Struct, frozen=True, tag="run-observed", tag_field="type"):
    """A run as a webhook or a GET showed it. On ``runs``.

    Key: the chunk that the run's reserved metadata key names; if there is none, the batchId; if there is no batchId
    either, the run id.
    """

    source: Source
    run: Annotated[
        msgspec.Raw,
        Meta(description="Extend's WorkflowRun, byte for byte as received.", extra_json_schema={"type": "object"}),
    ]
    event_type: Annotated[str | None, Meta(description="Extend's eventType; null for a poll.")] = None
    truncated: Annotated[
        bool, Meta(description="True if the run was too large, so that stepRuns and files were emptied.")
    ] = False


class RunTrimmed(Struct, frozen=True, tag="run-trimmed", tag_field="type"):
    """The content of a foreign run was dropped from the tables, except for its head. On ``runs``.

    Key: the same as that of the run's other events. If the run turns out to belong to this installation (for
    example, because its batch is registered later), the reconciler fetches the run again.
    """

    source: Source
    run: Annotated[
        msgspec.Raw,
        Meta(
            description="The head: the fields that have columns of their own in the tables.",
            extra_json_schema={"type": "object"},
        ),
    ]
    order: Annotated[
        str,
        Meta(
            description="The rank of the trimmed state among all states of the run. A state with a greater rank "
            "replaces it."
        ),
    ]


RunEvent = RunObserved | RunTrimmed


class DeliveryDeferred(Struct, frozen=True, tag="delivery-deferred", tag_field="type"):
    """A webhook arrived whose payload must be fetched from a signed link. Key: run id. On ``deliveries``."""

    event_type: Annotated[str, Meta(description="Extend's eventType.")]
    run_id: Annotated[str, Meta(description="The run that the payload describes.")]
    url: Annotated[str, Meta(description="Extend's link, valid for an hour.")]
    metadata: Annotated[dict[str, Any] | None, Meta(description="The run's metadata; null if the webhook had none.")]


class MessageQuarantined(Struct, frozen=True, tag="message-quarantined", tag_field="type"):
    """A message could not be understood or stored; it is kept as received. Key: its source. On ``quarantine``."""

    source: Annotated[str, Meta(description="'webhook/<sha256 of the body>' or '<topic>/<partition>/<offset>'.")]
    topic: Annotated[str, Meta(description="The topic that the message was read from, or 'webhook'.")]
    partition: Annotated[
        int | None, Meta(description="The partition that the message was read from; null for a webhook.")
    ]
    offset: Annotated[int | None, Meta(description="The offset of the message in that partition; null for a webhook.")]
    reason: Annotated[str, Meta(description="Why the message was not understood or stored.")]
    headers: Annotated[
        list[tuple[str, str]],
        Meta(description="The headers of the message, as pairs of name and value. Secret headers are left out."),
    ]
    raw: Annotated[str, Meta(description="The message, in base64. If it is over about 12 MiB, it is truncated.")]
    key: Annotated[str | None, Meta(description="The key of the message in that topic, in base64.")] = None


class QuarantineRetried(Struct, frozen=True, tag="quarantine-retried", tag_field="type"):
    """A quarantined message was retried. Key: its source. On ``quarantine``.

    If the message was published again, that record was written before this event.
    """

    source: Annotated[str, Meta(description="The source of the message, as in its message-quarantined event.")]
    outcome: Annotated[
        Literal["published", "dropped", "not-understood"],
        Meta(
            description="published: the message was published again; dropped: it was understood but is not needed (a "
            "step's event); not-understood: it still cannot be understood."
        ),
    ]
    detail: Annotated[
        str, Meta(description="The topic that the message was published to, or why it was not understood.")
    ]
    by: Annotated[str, Meta(description="Who decided.")]
    reason: Reason


class QuarantineDiscarded(Struct, frozen=True, tag="quarantine-discarded", tag_field="type"):
    """A person discarded a quarantined message: it is kept, but nothing more will be done with it. Key: its source."""

    source: Annotated[str, Meta(description="The source of the message, as in its message-quarantined event.")]
    by: Annotated[str, Meta(description="Who decided.")]
    reason: Reason


class Result(Struct, frozen=True, kw_only=True):
    """The current state of an input: its row in ``everyrun.results``. Key: input id."""

    input_id: InputId
    external_id: ExternalId
    submission_id: SubmissionId
    position: Annotated[int, Meta(description="Position in the submission, from 1.")]
    chunk: Chunk
    attempt: AttemptOrNone
    batch_id: Annotated[
        str | None, Meta(description="Extend's id of the batch; null if Extend never accepted the input.")
    ]
    file: FileJson
    metadata: MetadataJson
    run_id: Annotated[str | None, Meta(description="The current run; null if no run is known yet.")]
    status: Annotated[
        str,
        Meta(
            description="WAITING if a new try waits to be sent, SUBMITTED, REFUSED, or Extend's status of the current "
            "run."
        ),
    ]
    failure_reason: Annotated[
        str | None,
        Meta(
            description="Extend's failureReason; for a refused input, the error code or DISCARDED; for an input that "
            "was cancelled before Extend accepted it, CANCELLED_UNSENT."
        ),
    ]
    failure_message: Annotated[str | None, Meta(description="The message that belongs to failure_reason.")]
    credits: Annotated[float | None, Meta(description="Extend's usage.credits of the current run.")]
    source: Annotated[
        Literal["webhook", "poll"] | None,
        Meta(description="How Everyrun learned of this state; null if there is no run."),
    ]
    observed_at: Annotated[
        Time | None,
        Meta(description="When Everyrun learned of this state; without a run, the time of the attempt's event."),
    ]
    settled_at: Annotated[Time | None, Meta(description="When the input settled; null while it is open.")]
    version: Annotated[
        str, Meta(description="Text to compare: of two events of an input, the one with the greater version is newer.")
    ]
    run: Annotated[
        msgspec.Raw,
        Meta(
            description="The WorkflowRun; null if there is no run, or if it does not fit into the event.",
            extra_json_schema={"type": ["object", "null"]},
        ),
    ]


class ResultChanged(Result, frozen=True, kw_only=True, tag="result-changed", tag_field="type"):
    """The state of an input that is not settled yet. On ``results``."""


class ResultSettled(Result, frozen=True, kw_only=True, tag="result-settled", tag_field="type"):
    """The state of a settled input: PROCESSED, FAILED, CANCELLED, REJECTED or REFUSED. On ``results``."""


class BatchReport(Struct, frozen=True, kw_only=True):
    """The progress of an attempt. Key: batchId, or the chunk if there is no batchId."""

    submission_id: SubmissionId
    chunk: Chunk
    attempt: AttemptOrNone
    batch_id: Annotated[
        str | None, Meta(description="Extend's id of the batch; null if Extend never accepted the chunk.")
    ]
    state: Annotated[str, Meta(description="The state of the attempt, as in everyrun.batches.")]
    expected: Annotated[int, Meta(description="Number of inputs in the attempt.")]
    counts: Annotated[dict[str, int], Meta(description="Number of inputs that belong to the attempt, by status.")]
    runs_observed: Annotated[int, Meta(description="Number of runs of the batch that were matched to an input.")]
    duplicates: Annotated[
        int,
        Meta(description="Number of runs of the batch that are further runs of the try that their input shows."),
    ]
    superseded: Annotated[int, Meta(description="Number of runs of the batch whose input has a newer try.")] = 0
    settled_at: Annotated[Time | None, Meta(description="When the last input settled; null while an input is open.")]


class BatchProgressed(BatchReport, frozen=True, kw_only=True, tag="batch-progressed", tag_field="type"):
    """Some inputs of a batch changed their status. On ``reports``."""


class BatchSettled(BatchReport, frozen=True, kw_only=True, tag="batch-settled", tag_field="type"):
    """Every input of the batch is settled, or the chunk was refused or cancelled. On ``reports``."""


class SubmissionSettled(Struct, frozen=True, kw_only=True, tag="submission-settled", tag_field="type"):
    """Every input of the submission is settled. Key: submission id. On ``reports``."""

    submission_id: SubmissionId
    workflow_id: WorkflowId
    expected: Annotated[int, Meta(description="Number of inputs in the submission.")]
    counts: Annotated[dict[str, int], Meta(description="Number of inputs of the submission, by status.")]


class ProbeWritten(Struct, frozen=True, tag="probe-written", tag_field="type"):
    """The doctor checked whether Kafka accepts a record. No service reads it. Key: the doctor's host. On ``probes``."""

    host: Annotated[str, Meta(description="The host that the doctor ran on.")]


BatchEvent = (
    SubmissionAccepted
    | BatchRequested
    | BatchReturned
    | BatchInDoubt
    | DoubtAdopted
    | DoubtResent
    | DoubtDiscarded
    | BatchSubmitted
    | BatchRejected
    | BatchCut
    | InputsRetried
    | BatchCancelled
    | CancellationRequested
    | WorkflowPaused
    | WorkflowResumed
    | SubmissionPaused
    | SubmissionResumed
    | BatchRegistered
    | TokenCreated
    | TokenRevoked
    | ReceiverChanged
)

QuarantineEvent = MessageQuarantined | QuarantineRetried | QuarantineDiscarded

#: Event types by topic, as declared in infra/kafka/topics.yaml.
TOPICS: dict[str, tuple[type[Struct], ...]] = {
    "batches": get_args(BatchEvent),
    "runs": get_args(RunEvent),
    "deliveries": (DeliveryDeferred,),
    "results": (ResultChanged, ResultSettled),
    "reports": (BatchProgressed, BatchSettled, SubmissionSettled),
    "quarantine": get_args(QuarantineEvent),
    "probes": (ProbeWritten,),
}
