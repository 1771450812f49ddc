"""The events, as Python types. Their JSON Schemas in ``schemas/`` are generated from here.

Times are RFC 3339 UTC text with milliseconds (``2026-02-09T10:00:00.000Z``), as Extend writes them. An event's
own time, id, type and subject are in its CloudEvents headers (see :mod:`everyrun.log.cloudevents`), not in its value.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

InputId = Annotated[str, Meta(description="<submission id>:<external id>")]
Chunk = Annotated[
    str,
    Meta(
        description="Chunk id: the inputs that go to Extend in one call. As a Kafka key: the id up to its first "
        "hyphen, which is the chunk that a part was first cut from."
    ),
]
Attempt = Annotated[int, Meta(ge=1, description="Which attempt at sending the chunk this is, from 1.")]
Decider = Annotated[str | None, Meta(description="Who decided; null where Everyrun did by its own rules.")]
Time = Annotated[str, Meta(description="RFC 3339 UTC with milliseconds.")]
SubmissionId = Annotated[str, Meta(description="The submission: sub_ and 26 characters that sort by time.")]
WorkflowId = Annotated[str, Meta(description="Extend's id of the workflow.")]
WorkflowVersion = Annotated[
    str | None, Meta(description="The version that was asked for; null for the newest published one.")
]
Priority = Annotated[int, Meta(description="Extend's priority, 1 to 100; the lower ones come first.")]
BatchId = Annotated[str, Meta(description="Extend's id of the batch.")]
Inputs = Annotated[list["Input"], Meta(description="Its inputs, in the order they were sent.")]
Code = Annotated[str, Meta(description="Extend's code for the error.")]
Message = Annotated[str, Meta(description="Extend's message for the error.")]
Source = Annotated[Literal["webhook", "poll"], Meta(description="How Everyrun learned of it.")]
Reason = Annotated[str, Meta(description="Why.")]
FileJson = Annotated[
    msgspec.Raw,
    Meta(
        description="The file as handed in, without the query string of a URL and without a password.",
        extra_json_schema={"type": "object"},
    ),
]
MetadataJson = Annotated[
    msgspec.Raw, Meta(description="The metadata as handed in.", extra_json_schema={"type": "object"})
]

#: Characters of an Idempotency-Key at most.
MAX_IDEMPOTENCY_KEY = 255


class Input(Struct, frozen=True, omit_defaults=True):
    """One input of a batch, as it was handed in; query strings of URLs and passwords are left out."""

    input_id: InputId
    external_id: Annotated[str, Meta(description="The caller's own id, or the position as text.")]
    position: Annotated[int, Meta(ge=1, description="Place in the submission, from 1.")]
    file: Annotated[
        dict[str, Any], Meta(description="The file, without the query string of a URL and without a password.")
    ]
    metadata: Annotated[dict[str, Any], Meta(description="The caller's metadata, without Everyrun's reserved key.")]


class SubmissionAccepted(Struct, frozen=True, tag="submission-accepted", tag_field="type"):
    """Inputs were taken in for good. Key: submission id. On ``batches``."""

    submission_id: SubmissionId
    workflow_id: WorkflowId
    workflow_version: WorkflowVersion
    priority: Priority
    expected: Annotated[int, Meta(ge=1, description="How many inputs the submission has.")]
    batches: Annotated[int, Meta(ge=1, description="How many chunks it was cut into.")]
    idempotency_key: Annotated[
        str,
        Meta(
            max_length=MAX_IDEMPOTENCY_KEY,
            description="The Idempotency-Key of the upload, or the submission id if it had none.",
        ),
    ]
    content_hash: Annotated[
        str,
        Meta(
            pattern="^[0-9a-f]{64}$",
            description="SHA-256, as hex, of workflow, priority and inputs as the log shows them: without secrets.",
        ),
    ]
    created_at: Time


class BatchRequested(Struct, frozen=True, tag="batch-requested", tag_field="type"):
    """An attempt at sending a chunk is about to be made. Key: chunk. On ``batches``, before Extend is called."""

    submission_id: SubmissionId
    chunk: Chunk
    attempt: Attempt
    installation: Annotated[str, Meta(description="The installation of Everyrun that sends it.")]
    workflow_id: WorkflowId
    workflow_version: WorkflowVersion
    priority: Priority
    deadline: Annotated[str, Meta(description="The call is not begun after this time.")]
    inputs: Annotated[list[Input], Meta(description="In the order they are sent.")]


class BatchReturned(Struct, frozen=True, tag="batch-returned", tag_field="type"):
    """The attempt was not taken, for now (429, or no byte was sent): its inputs wait again. Key: chunk."""

    submission_id: SubmissionId
    chunk: Chunk
    attempt: Attempt
    reason: Annotated[str, Meta(description="Why it was not taken, and what the retry waits for.")]


class BatchInDoubt(Struct, frozen=True, tag="batch-in-doubt", tag_field="type"):
    """Whether Extend took the attempt is unknown until evidence comes. Key: chunk."""

    submission_id: SubmissionId
    chunk: Chunk
    attempt: Attempt
    reason: Annotated[str, Meta(description="What happened to the call.")]


class DoubtResent(Struct, frozen=True, tag="doubt-resent", tag_field="type"):
    """No evidence came within the window: the attempt is given up, the chunk waits to be sent again. Key: chunk."""

    submission_id: SubmissionId
    chunk: Chunk
    attempt: Attempt
    reason: Reason
    resends: Annotated[int, Meta(ge=1, description="How many attempts at the chunk were given up, this one included.")]
    by: Decider


class DoubtAdopted(Struct, frozen=True, tag="doubt-adopted", tag_field="type"):
    """A person named the batch that the attempt became, and a run of it said so too. Key: chunk.

    It is to the attempt what batch-submitted is: each of its inputs is now a run.
    """

    submission_id: SubmissionId
    chunk: Chunk
    attempt: Attempt
    batch_id: BatchId
    workflow_id: WorkflowId
    workflow_version: WorkflowVersion
    priority: Priority
    evidence: Annotated[str, Meta(description="'run <id>': the run that named the attempt when it was asked for.")]
    adopted_at: Time
    by: Annotated[str, Meta(description="Who decided.")]
    reason: Reason
    inputs: Inputs


class DoubtDiscarded(Struct, frozen=True, tag="doubt-discarded", tag_field="type"):
    """A person decided that the chunk is not sent again: its inputs are REFUSED, reason DISCARDED. Key: chunk.

    Should a run of it show up all the same, batch-submitted follows and its inputs have that run's status.
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
    """Extend took the batch: each of its inputs is now a run. Key: chunk."""

    submission_id: SubmissionId
    chunk: Chunk
    attempt: Attempt
    batch_id: BatchId
    workflow_id: WorkflowId
    workflow_version: WorkflowVersion
    priority: Priority
    evidence: Annotated[str, Meta(description="'answer', or 'run <id>' where a run proved what the answer did not.")]
    submitted_at: Time
    inputs: Inputs


class BatchRejected(Struct, frozen=True, tag="batch-rejected", tag_field="type"):
    """Extend refused the chunk for good: its inputs are REFUSED. Key: chunk."""

    submission_id: SubmissionId
    chunk: Chunk
    attempt: Attempt
    workflow_id: WorkflowId
    workflow_version: WorkflowVersion
    priority: Priority
    status: Annotated[int, Meta(description="HTTP status of Extend's answer.")]
    code: Code
    message: Message
    rejected_at: Time
    inputs: Inputs


class Part(Struct, frozen=True):
    """A chunk that another one was cut into: a range of its inputs."""

    chunk: Annotated[str, Meta(description="<id of the chunk that was cut>-<number from 1>")]
    first_position: Annotated[int, Meta(ge=1, description="Place of its first input in the submission.")]
    last_position: Annotated[int, Meta(ge=1, description="Place of its last input in the submission.")]


class BatchCut(Struct, frozen=True, tag="batch-cut", tag_field="type"):
    """Extend refused an attempt because of some of its inputs, and made nothing of it. Key: chunk.

    Its inputs live on in the parts, which are sent as chunks of their own, so that one bad input refuses no other.
    """

    submission_id: SubmissionId
    chunk: Chunk
    attempt: Attempt
    status: Annotated[int, Meta(description="HTTP status of Extend's answer.")]
    code: Code
    message: Message
    input_ids: Annotated[list[InputId], Meta(description="In the order they were sent; the parts follow this order.")]
    parts: Annotated[list[Part], Meta(description="Two or more; each input is in exactly one of them.")]


class BatchRegistered(Struct, frozen=True, tag="batch-registered", tag_field="type"):
    """A batch that somebody else submitted to Extend is to be accounted for here, as a submission of its own.

    Its runs carry no reserved key: they are matched by the fingerprint of their metadata. Key: batchId. On ``batches``.
    """

    submission_id: SubmissionId
    chunk: Chunk
    attempt: Attempt
    batch_id: BatchId
    workflow_id: WorkflowId
    workflow_version: WorkflowVersion
    registered_at: Time
    inputs: Annotated[list[Input], Meta(description="Its inputs, as they were sent to Extend by whoever sent them.")]


class WorkflowPaused(Struct, frozen=True, tag="workflow-paused", tag_field="type"):
    """Nothing is sent for the workflow until it is resumed. Key: workflow id. On ``batches``."""

    workflow_id: WorkflowId
    reason: Reason
    by: Decider


class WorkflowResumed(Struct, frozen=True, tag="workflow-resumed", tag_field="type"):
    """The workflow's chunks are sent again. Key: workflow id. On ``batches``."""

    workflow_id: WorkflowId
    reason: Reason
    by: Decider


class SubmissionPaused(Struct, frozen=True, tag="submission-paused", tag_field="type"):
    """Nothing more is sent of the submission until it is resumed. Key: submission id. On ``batches``."""

    submission_id: SubmissionId
    reason: Reason
    by: Decider


class SubmissionResumed(Struct, frozen=True, tag="submission-resumed", tag_field="type"):
    """The submission's chunks are sent again. Key: submission id. On ``batches``."""

    submission_id: SubmissionId
    reason: Reason
    by: Decider


class TokenCreated(Struct, frozen=True, tag="token-created", tag_field="type"):
    """An API token was made. Key: token id. On ``batches``. It holds neither the token nor its hash."""

    token_id: Annotated[str, Meta(description="The part of the token before its last underscore; it is no secret.")]
    name: Annotated[str, Meta(description="Whose token it is, or what for.")]
    scopes: Annotated[list[str], Meta(description="What it may be used for: submit, read, operate.")]
    created_at: Time
    expires_at: Annotated[Time | None, Meta(description="When it ends; null for never.")]
    by: Annotated[str, Meta(description="Who made it.")]


class TokenRevoked(Struct, frozen=True, tag="token-revoked", tag_field="type"):
    """An API token was revoked, in a restored database too. Key: token id. On ``batches``."""

    token_id: Annotated[str, Meta(description="The part of the token before its last underscore; it is no secret.")]
    name: Annotated[str, Meta(description="Whose token it was, or what for.")]
    revoked_at: Time
    by: Annotated[str, Meta(description="Who revoked it.")]
    reason: Reason


class RunObserved(Struct, frozen=True, tag="run-observed", tag_field="type"):
    """Holds a run as a webhook or a Get showed it. On ``runs``.

    Key: the chunk that the run's reserved metadata key names; without one the batchId; without either the run id.
    """

    source: Source
    run: Annotated[
        msgspec.Raw,
        Meta(description="The vendor's WorkflowRun, byte for byte as received.", extra_json_schema={"type": "object"}),
    ]
    event_type: Annotated[str | None, Meta(description="Extend's eventType, of a webhook.")] = None
    truncated: Annotated[bool, Meta(description="The run was too large: stepRuns and files were left out.")] = False


class RunTrimmed(Struct, frozen=True, tag="run-trimmed", tag_field="type"):
    """The content of a run that is not this installation's was dropped from the tables; its head stays. On ``runs``.

    Key: that of the run's observations. Should the run become ours after all (its batch is registered, say), the
    reconciler gets it again.
    """

    source: Source
    run: Annotated[
        msgspec.Raw,
        Meta(description="The head: what tables have columns for.", extra_json_schema={"type": "object"}),
    ]
    order: Annotated[str, Meta(description="The state that was trimmed. A later state replaces the head.")]


RunEvent = RunObserved | RunTrimmed


class DeliveryDeferred(Struct, frozen=True, tag="delivery-deferred", tag_field="type"):
    """A webhook whose payload is behind a signed link, to be fetched. Key: run id. On ``deliveries``."""

    event_type: Annotated[str, Meta(description="Extend's eventType.")]
    run_id: Annotated[str, Meta(description="The run that the payload is of.")]
    url: Annotated[str, Meta(description="Extend's link, good for an hour.")]
    metadata: Annotated[
        dict[str, Any] | None, Meta(description="The run's metadata; null if the webhook brought none.")
    ]


class MessageQuarantined(Struct, frozen=True, tag="message-quarantined", tag_field="type"):
    """A message that could not be understood, as it was received. Key: its source position. On ``quarantine``."""

    source: Annotated[str, Meta(description="'webhook/<sha256 of the body>' or '<topic>/<partition>/<offset>'.")]
    topic: Annotated[str, Meta(description="The topic it was read from, or 'webhook'.")]
    partition: Annotated[int | None, Meta(description="The partition it was read from; null of a webhook.")]
    offset: Annotated[int | None, Meta(description="Its offset there; null of a webhook.")]
    reason: Annotated[str, Meta(description="Why it was not understood.")]
    headers: Annotated[list[tuple[str, str]], Meta(description="Its headers: name and value of each.")]
    raw: Annotated[str, Meta(description="The message, base64.")]
    key: Annotated[str | None, Meta(description="Its key in the topic it was read from, base64.")] = None


class QuarantineRetried(Struct, frozen=True, tag="quarantine-retried", tag_field="type"):
    """A quarantined message was looked at again. Key: its source. On ``quarantine``, after what was published."""

    source: Annotated[str, Meta(description="The message: the source of its message-quarantined.")]
    outcome: Annotated[
        Literal["published", "dropped", "not-understood"],
        Meta(description="Published again; understood and of no use (a step's event); or still not understood."),
    ]
    detail: Annotated[str, Meta(description="The topic it was published to, or why it is not understood.")]
    by: Annotated[str, Meta(description="Who decided.")]
    reason: Reason


class QuarantineDiscarded(Struct, frozen=True, tag="quarantine-discarded", tag_field="type"):
    """A person decided that nothing more is done about a quarantined message; it is kept. Key: its source."""

    source: Annotated[str, Meta(description="The message: the source of its message-quarantined.")]
    by: Annotated[str, Meta(description="Who decided.")]
    reason: Reason


class Result(Struct, frozen=True, kw_only=True):
    """The present state of one input: its row of ``everyrun.results``. Key: input id."""

    input_id: InputId
    external_id: Annotated[str, Meta(description="The caller's own id, or the position as text.")]
    submission_id: SubmissionId
    position: Annotated[int, Meta(description="Place in the submission, from 1.")]
    chunk: Chunk
    attempt: Attempt
    batch_id: Annotated[str | None, Meta(description="Extend's id of the batch; null if the input was refused.")]
    file: FileJson
    metadata: MetadataJson
    run_id: Annotated[str | None, Meta(description="The standing run; null if none is known yet.")]
    status: Annotated[str, Meta(description="SUBMITTED, REFUSED, or Extend's word for the standing run.")]
    failure_reason: Annotated[
        str | None, Meta(description="Extend's failureReason; of a refused input the code, or DISCARDED.")
    ]
    failure_message: Annotated[str | None, Meta(description="The text that goes with it.")]
    credits: Annotated[float | None, Meta(description="Extend's usage.credits of the run.")]
    source: Annotated[
        Literal["webhook", "poll"] | None, Meta(description="How the state was learned; null without a run.")
    ]
    observed_at: Annotated[Time | None, Meta(description="When Everyrun learned of the state; null without a run.")]
    settled_at: Annotated[Time | None, Meta(description="When the input settled; null while it is open.")]
    version: Annotated[str, Meta(description="Sorts: of two states of an input the greater is the newer. Keep that.")]
    run: Annotated[
        msgspec.Raw, Meta(description="The whole WorkflowRun, or null.", extra_json_schema={"type": ["object", "null"]})
    ]


class ResultChanged(Result, frozen=True, kw_only=True, tag="result-changed", tag_field="type"):
    """An input is not settled yet. On ``results``."""


class ResultSettled(Result, frozen=True, kw_only=True, tag="result-settled", tag_field="type"):
    """An input is settled: PROCESSED, FAILED, CANCELLED, REJECTED or REFUSED. On ``results``."""


class BatchReport(Struct, frozen=True, kw_only=True):
    """Where an attempt at a batch stands. Key: batchId, or the chunk where there is none."""

    submission_id: SubmissionId
    chunk: Chunk
    attempt: Attempt
    batch_id: Annotated[str | None, Meta(description="Extend's id of the batch; null if the chunk was refused.")]
    state: Annotated[str, Meta(description="The state of the attempt, as in everyrun.batches.")]
    expected: Annotated[int, Meta(description="How many inputs the attempt has.")]
    counts: Annotated[dict[str, int], Meta(description="Inputs that count in the attempt, by status.")]
    runs_observed: Annotated[int, Meta(description="Distinct runs of the batch that were matched to an input.")]
    duplicates: Annotated[int, Meta(description="Further runs of inputs that have a standing one.")]
    settled_at: Annotated[Time | None, Meta(description="When its last input settled; null while one is open.")]


class BatchProgressed(BatchReport, frozen=True, kw_only=True, tag="batch-progressed", tag_field="type"):
    """Some of a batch's inputs moved on. On ``reports``."""


class BatchSettled(BatchReport, frozen=True, kw_only=True, tag="batch-settled", tag_field="type"):
    """Every input of the batch is settled, or the chunk was refused. On ``reports``."""


class SubmissionSettled(Struct, frozen=True, kw_only=True, tag="submission-settled", tag_field="type"):
    """Every input of the submission is settled. Key: submission id. On ``reports``."""

    submission_id: SubmissionId
    workflow_id: WorkflowId
    expected: Annotated[int, Meta(description="How many inputs the submission has.")]
    counts: Annotated[dict[str, int], Meta(description="Its inputs by status.")]


class ProbeWritten(Struct, frozen=True, tag="probe-written", tag_field="type"):
    """The doctor looked whether Kafka takes a record; nobody reads it. Key: the host it ran on. On ``probes``."""

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
    | WorkflowPaused
    | WorkflowResumed
    | SubmissionPaused
    | SubmissionResumed
    | BatchRegistered
    | TokenCreated
    | TokenRevoked
)

QuarantineEvent = MessageQuarantined | QuarantineRetried | QuarantineDiscarded

#: Event types by topic, as declared in infra/kafka/topics.yaml.
TOPICS: dict[str, tuple[type[Struct], ...]] = {
    "batches": (
        SubmissionAccepted,
        BatchRequested,
        BatchReturned,
        BatchInDoubt,
        DoubtAdopted,
        DoubtResent,
        DoubtDiscarded,
        BatchSubmitted,
        BatchRejected,
        BatchCut,
        WorkflowPaused,
        WorkflowResumed,
        SubmissionPaused,
        SubmissionResumed,
        BatchRegistered,
        TokenCreated,
        TokenRevoked,
    ),
    "runs": (RunObserved, RunTrimmed),
    "deliveries": (DeliveryDeferred,),
    "results": (ResultChanged, ResultSettled),
    "reports": (BatchProgressed, BatchSettled, SubmissionSettled),
    "quarantine": (MessageQuarantined, QuarantineRetried, QuarantineDiscarded),
    "probes": (ProbeWritten,),
}
