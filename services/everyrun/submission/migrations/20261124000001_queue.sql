-- migrate:up
create schema if not exists everyrun_queue;

comment on schema everyrun_queue is 'The queue: accepted submissions, and which of their inputs have been sent. The log does not contain all of it, so back up this schema.';

create table everyrun_queue.installation (
    singleton boolean primary key default true check (singleton),
    installation text not null,
    vendor text
);
comment on table everyrun_queue.installation is 'The installation of this queue. One row.';
comment on column everyrun_queue.installation.singleton is 'Always true: there is one row.';
comment on column everyrun_queue.installation.installation is
    'The id of the installation. It is part of the reserved metadata key that Everyrun adds to each input.';
comment on column everyrun_queue.installation.vendor is
    'The Extend to which this queue and its log were bound at the first start: its base URL, or the word emulator. Everyrun refuses to start with another Extend.';
insert into everyrun_queue.installation (installation) values ('inst_' || replace(gen_random_uuid()::text, '-', ''));

create table everyrun_queue.submissions (
    submission_id text collate "C" primary key,
    workflow_id text not null,
    workflow_version text,
    priority smallint,
    max_open_inputs int check (max_open_inputs > 0),
    synced_source text collate "C",
    expected bigint not null,
    batches int not null,
    idempotency_key text unique,
    registered_batch text collate "C" unique,
    content_hash bytea not null,
    full_hash bytea,
    lost_inputs bigint not null default 0,
    created_at timestamptz not null,
    announced_at timestamptz,
    redacted_at timestamptz,
    redact_after timestamptz default now()
);
comment on table everyrun_queue.submissions is
    'One row per accepted submission, and one per registered batch (a batch that another program sent to Extend).';
comment on column everyrun_queue.submissions.submission_id is 'The id that everyrun submit prints.';
comment on column everyrun_queue.submissions.workflow_id is 'Extend''s id of the workflow.';
comment on column everyrun_queue.submissions.workflow_version is
    'The requested version of the workflow. Null if none was requested: Extend then uses the newest published version.';
comment on column everyrun_queue.submissions.priority is
    'Priority at Extend, from 1 (first) to 100 (last). Null for a registered batch.';
comment on column everyrun_queue.submissions.synced_source is
    'The source that everyrun sync read (see synced_objects). Null for a submission that is not of a sync.';
comment on column everyrun_queue.submissions.max_open_inputs is
    'Maximum number of the submission''s inputs that may be open at Extend at the same time. Null for no maximum of its own.';
comment on column everyrun_queue.submissions.expected is 'Number of inputs.';
comment on column everyrun_queue.submissions.batches is 'Number of chunks.';
comment on column everyrun_queue.submissions.created_at is 'When the submission was accepted.';
comment on column everyrun_queue.submissions.announced_at is
    'When Kafka acknowledged the event submission-accepted or batch-registered. Null until then. No input is sent before this time.';
comment on column everyrun_queue.submissions.registered_batch is 'For a registered batch: Extend''s batchId. Null for other submissions.';
comment on column everyrun_queue.submissions.redacted_at is
    'When Everyrun began to remove the presigned URLs and passwords of the inputs. An unsent input that needs them can no longer be sent.';
comment on column everyrun_queue.submissions.redact_after is
    'When Everyrun next checks if it must remove the presigned URLs and passwords. Null after it has removed them.';
create index submissions_to_redact on everyrun_queue.submissions (redact_after) where redact_after is not null;
comment on column everyrun_queue.submissions.idempotency_key is
    'The Idempotency-Key of the upload. If the upload had none, the submission id takes its place.';
comment on column everyrun_queue.submissions.content_hash is
    'SHA-256 hash of the content without query strings of URLs and without passwords. The log has this content.';
comment on column everyrun_queue.submissions.full_hash is
    'SHA-256 hash of the complete content, with query strings and passwords. Null if the submission was restored from the log, which does not have them.';
comment on column everyrun_queue.submissions.lost_inputs is
    'Number of inputs that are lost since the queue was restored from an older backup. The log does not have them. To restore them, repeat the upload with the same Idempotency-Key.';
create index submissions_incomplete on everyrun_queue.submissions (submission_id) where lost_inputs > 0;
create index submissions_content on everyrun_queue.submissions (content_hash);
create index submissions_unannounced on everyrun_queue.submissions (created_at) where announced_at is null;

create table everyrun_queue.inputs (
    submission_id text collate "C" not null,
    position int not null,
    external_id text collate "C" not null,
    file text not null,
    metadata text not null,
    first_try int,
    primary key (submission_id, position)
);
comment on table everyrun_queue.inputs is 'The inputs, in the form in which they are sent to Extend.';
comment on column everyrun_queue.inputs.submission_id is 'The submission.';
comment on column everyrun_queue.inputs.position is 'Position of the input in the queue of its submission. For a first try it is the position in the submission, from 1. New tries come after all first tries.';
comment on column everyrun_queue.inputs.first_try is 'For a new try of an input, made by a retry: the position of its first try. Null for a first try.';
comment on column everyrun_queue.inputs.external_id is 'The id that the caller gave to the input. If the caller gave none, the position as text.';
comment on column everyrun_queue.inputs.file is
    'The file as JSON text. It contains the query string of a presigned URL and the password until they are removed (see submissions.redacted_at).';
comment on column everyrun_queue.inputs.metadata is 'The metadata as JSON text, as submitted.';
create index inputs_external_id on everyrun_queue.inputs (submission_id, external_id);

create table everyrun_queue.rules (
    submission_id text collate "C" primary key,
    retries int not null,
    retry_reasons text[] not null,
    stop_after_failures int,
    stopped_at timestamptz
);
comment on table everyrun_queue.rules is 'What Everyrun does by itself if inputs fail. One row per submission that was given such rules.';
comment on column everyrun_queue.rules.submission_id is 'The submission.';
comment on column everyrun_queue.rules.retries is 'Maximum number of automatic new tries of an input that fails.';
comment on column everyrun_queue.rules.retry_reasons is 'The failure reasons for which inputs are retried automatically. Empty for all.';
comment on column everyrun_queue.rules.stop_after_failures is 'Everyrun pauses the submission if more inputs than this are FAILED or REFUSED. Null for no limit.';
comment on column everyrun_queue.rules.stopped_at is 'When Everyrun paused the submission by this rule. It does so once. Null until then.';

create table everyrun_queue.retries (
    submission_id text collate "C" not null,
    retry int not null,
    inputs int not null,
    chosen jsonb not null,
    requested_by text,
    reason text not null,
    request_key text,
    created_at timestamptz not null,
    primary key (submission_id, retry),
    unique (submission_id, request_key)
);
comment on table everyrun_queue.retries is 'One row per retry: a request to send settled inputs of a submission again.';
comment on column everyrun_queue.retries.submission_id is 'The submission.';
comment on column everyrun_queue.retries.retry is 'Number of the retry in the submission, from 1. The chunks of the retry have ids that end in -r and this number.';
comment on column everyrun_queue.retries.inputs is 'Number of inputs that the retry sends again.';
comment on column everyrun_queue.retries.chosen is 'Which inputs were chosen: the filter of the request.';
comment on column everyrun_queue.retries.requested_by is 'Who requested the retry. Null if Everyrun did, by the rules that the submission was given.';
comment on column everyrun_queue.retries.reason is 'Why the inputs are sent again.';
comment on column everyrun_queue.retries.request_key is 'The Idempotency-Key of the request. Null if it had none.';
comment on column everyrun_queue.retries.created_at is 'When the retry was accepted.';

create table everyrun_queue.cancellations (
    cancellation_id text collate "C" primary key,
    submission_id text collate "C" not null,
    scope text not null check (scope in ('submission', 'batch', 'inputs')),
    batch_id text collate "C",
    positions int4multirange not null,
    requested_by text not null,
    reason text not null,
    requested_at timestamptz not null,
    next_at timestamptz default now(),
    progressed_at timestamptz not null default now(),
    problem text,
    ended_at timestamptz
);
comment on table everyrun_queue.cancellations is
    'Inputs that a person cancelled. A cancellation is in progress until each of its inputs is settled, or Extend cannot cancel its run.';
comment on column everyrun_queue.cancellations.cancellation_id is 'Id of the cancellation: can_ and 26 characters.';
comment on column everyrun_queue.cancellations.submission_id is 'The submission of the inputs.';
comment on column everyrun_queue.cancellations.scope is 'What the person named: submission, batch or inputs.';
comment on column everyrun_queue.cancellations.batch_id is 'If the scope is batch: Extend''s batchId.';
comment on column everyrun_queue.cancellations.positions is
    'Positions of the inputs in the submission. Later tries of these inputs have other positions, so they are not cancelled.';
comment on column everyrun_queue.cancellations.requested_by is 'Who requested it.';
comment on column everyrun_queue.cancellations.reason is 'Why it was requested.';
comment on column everyrun_queue.cancellations.requested_at is 'When it was requested.';
comment on column everyrun_queue.cancellations.next_at is
    'When a worker next looks at the cancellation. A worker that begins to work on it sets a later time, so that no other worker does the same. Null if it has ended.';
comment on column everyrun_queue.cancellations.progressed_at is
    'When a worker last found or did something new. The longer ago that is, the more rarely workers look.';
comment on column everyrun_queue.cancellations.problem is 'Why runs cannot be cancelled at Extend at the moment. Null if nothing is wrong.';
comment on column everyrun_queue.cancellations.ended_at is 'When the cancellation ended. Null while it is in progress.';
create index cancellations_open on everyrun_queue.cancellations (next_at) where ended_at is null;
create index cancellations_submission on everyrun_queue.cancellations (submission_id);

create table everyrun_queue.cancelled_runs (
    cancellation_id text collate "C" not null references everyrun_queue.cancellations on delete cascade,
    run_id text collate "C" not null,
    batch_id text collate "C" not null,
    input_id text collate "C",
    outcome text check (outcome in ('cancelled', 'finished', 'in_review', 'refused', 'gone')),
    refusals int not null default 0,
    detail text,
    at timestamptz not null default now(),
    primary key (cancellation_id, run_id)
);
comment on table everyrun_queue.cancelled_runs is 'The outcome of a cancellation for each run that an input of it has at Extend.';
comment on column everyrun_queue.cancelled_runs.cancellation_id is 'The cancellation.';
comment on column everyrun_queue.cancelled_runs.run_id is 'Extend''s id of the run.';
comment on column everyrun_queue.cancelled_runs.batch_id is 'The batch of the run.';
comment on column everyrun_queue.cancelled_runs.input_id is 'The input of the run. Null if Everyrun did not need to know it in order to cancel the run.';
comment on column everyrun_queue.cancelled_runs.outcome is
    'cancelled (Extend confirmed it); finished (the run had ended before); in_review (the run waits for a person''s review, and Extend does not cancel such runs); refused (Extend refused several times, although its list says that the run is in progress); gone (Extend does not have the run). Null if Extend refused, and the reason is not known yet.';
comment on column everyrun_queue.cancelled_runs.refusals is 'Number of times that Extend refused to cancel the run.';
comment on column everyrun_queue.cancelled_runs.detail is 'Extend''s error code and message, if it refused.';
comment on column everyrun_queue.cancelled_runs.at is 'When this outcome was stored.';
create index cancelled_runs_batch on everyrun_queue.cancelled_runs (cancellation_id, batch_id);

create table everyrun_queue.chunks (
    chunk text collate "C" primary key,
    submission_id text collate "C" not null references everyrun_queue.submissions,
    first_position int not null,
    last_position int not null,
    state text not null default 'waiting',
    attempt int not null default 0,
    resends int not null default 0,
    not_before timestamptz not null default '-infinity',
    reason text,
    owner text,
    announced int not null default 0,
    deadline timestamptz,
    batch_id text,
    skipped boolean not null default false,
    retry int not null default 0,
    looked_at boolean not null default false,
    files_lost boolean not null default false,
    cancellation text collate "C",
    settled int not null default 0,
    credits double precision,
    ready boolean not null generated always as (state = 'waiting' and not skipped and cancellation is null and not_before = '-infinity') stored,
    open_inputs int not null generated always as (
        case when state in ('sending', 'in_doubt', 'submitted') or (state = 'held' and not files_lost)
             then greatest(last_position - first_position + 1 - settled, 0) else 0 end) stored
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
comment on table everyrun_queue.chunks is 'One row per chunk: the inputs that are sent to Extend in one call, and what became of the call.';
comment on column everyrun_queue.chunks.chunk is 'Id of the chunk. Chunks are sent in the order of their ids.';
comment on column everyrun_queue.chunks.submission_id is 'The submission.';
comment on column everyrun_queue.chunks.first_position is 'Position of the chunk''s first input in the queue (see inputs.position).';
comment on column everyrun_queue.chunks.last_position is 'Position of the chunk''s last input in the queue.';
comment on column everyrun_queue.chunks.looked_at is 'True if the failed inputs of the chunk were retried by the rules of the submission, or none of them may be. Always false without such rules.';
comment on column everyrun_queue.chunks.retry is 'Number of the retry that made the chunk. 0 for a chunk of first tries.';
comment on column everyrun_queue.chunks.attempt is 'Number of the newest attempt (call to Extend). 0 before the first attempt.';
comment on column everyrun_queue.chunks.resends is 'Number of attempts that were in doubt and given up, after which the chunk was sent again.';
comment on column everyrun_queue.chunks.reason is 'Why the chunk is in this state. If it waits again: why Extend did not accept the last attempt.';
comment on column everyrun_queue.chunks.batch_id is 'Extend''s batchId, if Extend accepted an attempt. Otherwise null.';
comment on column everyrun_queue.chunks.state is 'waiting, sending, in_doubt (the call got no clear answer), held (in doubt, and waiting for a person''s decision), submitted, refused, cut (its inputs continue in the smaller chunks CHUNK-1, CHUNK-2, ...), or cancelled.';
comment on column everyrun_queue.chunks.owner is 'While the chunk is sending: the worker that claimed it and may call Extend. Null after the claim was revoked.';
comment on column everyrun_queue.chunks.announced is 'Number of the newest attempt whose event batch-requested the queue has read from the log.';
comment on column everyrun_queue.chunks.deadline is 'While the chunk is sending: the latest time at which the call can still be in progress. While it is in_doubt or held: the end of the window in which Everyrun waits for evidence.';
comment on column everyrun_queue.chunks.files_lost is
    'True if the chunk was restored from the log, which has its files without query strings and passwords. The chunk cannot be sent until the upload is repeated.';
comment on column everyrun_queue.chunks.cancellation is
    'The cancellation that contains all inputs of the chunk. Null if there is none. Such a chunk is never sent again.';
create index chunks_cancelling on everyrun_queue.chunks (cancellation, chunk) where cancellation is not null;
comment on column everyrun_queue.chunks.settled is
    'Number of inputs of an accepted chunk that are known to be no longer open at Extend. The function count_settled updates it from the result tables. It never decreases, even if the result tables are rebuilt.';
comment on column everyrun_queue.chunks.credits is
    'Credits that the runs of the chunk used, as far as Extend reported them. The function count_settled sets it when all inputs have settled. Null before.';
comment on column everyrun_queue.chunks.ready is 'True if the chunk can be claimed now.';
comment on column everyrun_queue.chunks.open_inputs is
    'Number of inputs that are, or may be, open at Extend: sent or being sent, and not known to be settled.';
create index chunks_files_lost on everyrun_queue.chunks (submission_id) where files_lost;
create index chunks_submission on everyrun_queue.chunks (submission_id);
comment on column everyrun_queue.chunks.not_before is 'The earliest time at which a worker can claim the chunk. After this time, the function claim sets the column to -infinity. Only chunks with -infinity can be claimed. The chunk of a retry has infinity until Kafka has acknowledged its event inputs-retried.';
comment on column everyrun_queue.chunks.skipped is
    'True if the function claim skipped the chunk. It does so while the workflow or submission is paused, while the submission is not announced, or if the presigned URLs or passwords of the chunk were removed.';
-- The chunks that can be claimed now, in the order of sending, and no others: a claim reads only the first entry of a submission.
create index chunks_ready on everyrun_queue.chunks (submission_id, chunk) where ready;
create index chunks_at_extend on everyrun_queue.chunks (chunk) where state = 'submitted' and open_inputs > 0;
create index chunks_without_credits on everyrun_queue.chunks (chunk)
    where state = 'submitted' and open_inputs = 0 and credits is null;
create index chunks_delayed on everyrun_queue.chunks (not_before) where state = 'waiting' and not_before > '-infinity';
-- Counted every few seconds. It has few rows compared to the submitted chunks.
create index chunks_unsent on everyrun_queue.chunks (state) where state in ('waiting', 'sending', 'in_doubt', 'held');
create index chunks_skipped on everyrun_queue.chunks (submission_id) where skipped;
create index chunks_to_look_at on everyrun_queue.chunks (submission_id) where state = 'submitted' and not looked_at;
create index chunks_batch on everyrun_queue.chunks (batch_id) where batch_id is not null;
create index chunks_unresolved on everyrun_queue.chunks (deadline) where state in ('sending', 'in_doubt');

create table everyrun_queue.synced_objects (
    source text collate "C" not null,
    workflow_id text not null,
    object text collate "C" not null,
    version text not null,
    submission_id text collate "C" not null,
    primary key (source, workflow_id, object)
);
comment on table everyrun_queue.synced_objects is
    'The objects of buckets and files of folders that everyrun sync has submitted: for each, what was submitted last.';
comment on column everyrun_queue.synced_objects.source is
    'The bucket and prefix (s3://BUCKET/PREFIX), or the folder and its machine (file://HOST/PATH).';
comment on column everyrun_queue.synced_objects.workflow_id is 'Extend''s id of the workflow to which the object was submitted.';
comment on column everyrun_queue.synced_objects.object is
    'The id of the input: the path of the object or file, relative to the source.';
comment on column everyrun_queue.synced_objects.version is
    'The ETag of the object, or the size and time of the file. Another version is submitted as a new input.';
comment on column everyrun_queue.synced_objects.submission_id is 'The submission with this version.';

create table everyrun_queue.adopted (
    chunk text collate "C" not null,
    attempt int not null,
    batch_id text not null,
    primary key (chunk, attempt, batch_id)
);
comment on column everyrun_queue.adopted.chunk is 'The chunk.';
comment on column everyrun_queue.adopted.attempt is 'Number of the attempt (call to Extend).';
comment on column everyrun_queue.adopted.batch_id is 'Extend''s batchId of the batch that the attempt started.';
comment on table everyrun_queue.adopted is 'Attempts that were in doubt until Everyrun found a run that proves that Extend accepted them.';

create table everyrun_queue.dropin_batches (
    submission_id text collate "C" primary key,
    batch_id text collate "C" not null unique
);
comment on table everyrun_queue.dropin_batches is 'One row per submission that was accepted by the drop-in endpoint and answered with a batchId.';
comment on column everyrun_queue.dropin_batches.submission_id is 'The submission.';
comment on column everyrun_queue.dropin_batches.batch_id is
    'The batchId that the caller got. It is that of Extend if Extend had accepted the whole submission as one batch before the answer. Otherwise it is batch_ and the last 26 characters of the submission id.';

create table everyrun_queue.deleted_runs (
    run_id text collate "C" primary key,
    deleted_by text not null,
    deleted_at timestamptz not null default now()
);
comment on table everyrun_queue.deleted_runs is 'Runs that were deleted at Extend through the drop-in endpoint, which no longer shows them. The result tables keep them.';
comment on column everyrun_queue.deleted_runs.run_id is 'Extend''s id of the run.';
comment on column everyrun_queue.deleted_runs.deleted_by is 'The name of the token with which the run was deleted.';
comment on column everyrun_queue.deleted_runs.deleted_at is 'When the run was deleted.';

create unlogged table everyrun_queue.budgets (
    category text primary key,
    free_at timestamptz not null
);
comment on column everyrun_queue.budgets.category is 'GET, WRITE or RUN. Extend limits the rate of each category separately.';
comment on column everyrun_queue.budgets.free_at is 'When the next request of the category may be sent.';
comment on table everyrun_queue.budgets is
    'The request budget that all processes share: for each category of requests, when the next request may be sent to Extend. The table is unlogged, so it is empty after a crash of Postgres.';

create table everyrun_queue.paused (
    kind text not null check (kind in ('workflow', 'submission')),
    id text collate "C" not null,
    reason text not null,
    decided_by text,
    since timestamptz not null,
    primary key (kind, id)
);
comment on column everyrun_queue.paused.kind is 'What is paused: workflow or submission.';
comment on column everyrun_queue.paused.id is 'The id of the workflow or submission.';
comment on column everyrun_queue.paused.reason is 'Why it is paused.';
comment on column everyrun_queue.paused.decided_by is 'Who paused it. Null if Everyrun paused it by its own rules.';
comment on column everyrun_queue.paused.since is 'When it was paused.';
comment on table everyrun_queue.paused is
    'Paused workflows and submissions. None of their inputs is sent until a person resumes them. Everyrun itself pauses a workflow if Extend answers that the workflow or the account is at fault, for example with 401, 402 or 403.';

create function everyrun_queue.restore_skipped_after_resume() returns trigger language plpgsql as $$
begin
    if old.kind = 'submission' then
        update everyrun_queue.chunks set skipped = false where submission_id = old.id and skipped;
    else
        update everyrun_queue.chunks c set skipped = false from everyrun_queue.submissions s
        where c.skipped and s.submission_id = c.submission_id and s.workflow_id = old.id;
    end if;
    return null;
end $$;
create trigger restore_skipped_after_resume after delete on everyrun_queue.paused
    for each row execute function everyrun_queue.restore_skipped_after_resume();

create function everyrun_queue.restore_skipped_after_announcement() returns trigger language plpgsql as $$
begin
    update everyrun_queue.chunks set skipped = false where submission_id = new.submission_id and skipped;
    return null;
end $$;
create trigger restore_skipped_after_announcement after update of announced_at on everyrun_queue.submissions
    for each row when (old.announced_at is null and new.announced_at is not null)
    execute function everyrun_queue.restore_skipped_after_announcement();

create table everyrun_queue.sweeps (
    workflow_id text collate "C" not null,
    begun_at timestamptz not null,
    complete_at timestamptz not null,
    primary key (workflow_id, begun_at)
);
comment on column everyrun_queue.sweeps.workflow_id is 'The workflow.';
comment on column everyrun_queue.sweeps.begun_at is 'When the sweep began.';
comment on column everyrun_queue.sweeps.complete_at is 'When the sweep was complete.';
comment on table everyrun_queue.sweeps is
    'Complete sweeps of a workflow. A sweep lists the runs that changed since before the oldest call in doubt began, and writes a run of each unknown batch to the log. A call in doubt is given up only after two complete sweeps that began after its window ended.';

create table everyrun_queue.polls (
    batch_id text collate "C" primary key,
    complete_at timestamptz not null,
    listed int not null,
    running int not null,
    due_at timestamptz,
    next_at timestamptz
);
comment on column everyrun_queue.polls.next_at is 'When the next poll of the batch is planned. This column is only for display.';
comment on column everyrun_queue.polls.batch_id is 'Extend''s batchId.';
comment on column everyrun_queue.polls.complete_at is 'When the last complete poll of the batch ended.';
comment on column everyrun_queue.polls.listed is 'Number of runs that Extend listed in that poll.';
comment on column everyrun_queue.polls.running is 'Number of the listed runs that were PENDING or PROCESSING.';
comment on column everyrun_queue.polls.due_at is 'For a batch that waits only for a person''s review: when it is polled next. Null for other batches.';
comment on table everyrun_queue.polls is 'The last complete poll of each batch. In a poll, the reconciler asks Extend for all runs of a batch.';

create table everyrun_queue.gone_runs (
    run_id text collate "C" primary key,
    batch_id text collate "C",
    gone_at timestamptz not null
);
comment on column everyrun_queue.gone_runs.run_id is 'Extend''s id of the run.';
comment on column everyrun_queue.gone_runs.batch_id is 'Extend''s batchId of the run. Null if unknown.';
comment on column everyrun_queue.gone_runs.gone_at is 'When Everyrun first could not fetch the run.';
comment on table everyrun_queue.gone_runs is 'Runs that are known but cannot be fetched. Either Extend answers 404 or 410, or the batch is settled and all tries to fetch the run have failed so far. The list of overdue inputs shows this as the reason.';
create index gone_runs_batch on everyrun_queue.gone_runs (batch_id);

create table everyrun_queue.published_offsets (
    topic text collate "C" not null,
    partition int not null,
    next_offset bigint not null,
    cluster_id text not null,
    primary key (topic, partition)
);
comment on column everyrun_queue.published_offsets.topic is 'The topic, without EVERYRUN_TOPIC_PREFIX.';
comment on column everyrun_queue.published_offsets.partition is 'The number of the partition.';
comment on column everyrun_queue.published_offsets.next_offset is 'The offset that the processors have committed in this partition.';
comment on column everyrun_queue.published_offsets.cluster_id is 'Id of the Kafka cluster.';
comment on table everyrun_queue.published_offsets is
    'How far the processors have published results. This is a copy of the offsets of their consumer group, at most a few seconds old. The copy is needed because Kafka deletes the offsets if the group has no members for long.';

create table everyrun_queue.log_position (
    partition int primary key,
    next_offset bigint not null,
    cluster_id text not null
);
comment on column everyrun_queue.log_position.partition is 'The number of a partition of the topic batches.';
comment on column everyrun_queue.log_position.next_offset is 'The offset of the next record to read.';
comment on column everyrun_queue.log_position.cluster_id is 'Id of the Kafka cluster.';
comment on table everyrun_queue.log_position is 'How far the submission service has read the topic batches into the queue.';

create table everyrun_queue.tokens (
    token_id text collate "C" primary key,
    name text not null,
    hash bytea not null check (length(hash) = 32),
    scopes text[] not null check (scopes <@ array ['submit', 'read', 'operate'] and scopes <> '{}'),
    created_at timestamptz not null,
    expires_at timestamptz,
    created_by text not null,
    revoked_at timestamptz,
    revoked_by text,
    revoked_reason text,
    created_announced_at timestamptz,
    revoked_announced_at timestamptz
);
comment on column everyrun_queue.tokens.token_id is
    'The part of the token before its last underscore. It is not secret.';
comment on column everyrun_queue.tokens.name is 'The owner or purpose of the token.';
comment on column everyrun_queue.tokens.scopes is 'What the token permits: submit, read, operate.';
comment on column everyrun_queue.tokens.created_at is 'When the token was created.';
comment on column everyrun_queue.tokens.expires_at is 'When the token expires. Null if it never expires.';
comment on column everyrun_queue.tokens.created_by is 'Who created the token.';
comment on column everyrun_queue.tokens.revoked_at is 'When the token was revoked. Null if it was not revoked.';
comment on column everyrun_queue.tokens.revoked_by is 'Who revoked the token.';
comment on column everyrun_queue.tokens.revoked_reason is 'Why the token was revoked.';
comment on column everyrun_queue.tokens.created_announced_at is 'When Kafka acknowledged the event token-created. Null until then.';
create index tokens_unannounced on everyrun_queue.tokens (token_id)
    where created_announced_at is null or (revoked_at is not null and revoked_announced_at is null);
comment on table everyrun_queue.tokens is 'Tokens for the APIs. The row of a revoked token is not deleted.';
comment on column everyrun_queue.tokens.revoked_announced_at is
    'When Kafka acknowledged the event token-revoked. Null until then. From then on, the token stays revoked even if the database is restored from an older backup.';
comment on column everyrun_queue.tokens.hash is 'SHA-256 of the token. The token itself is not stored.';

create table everyrun_queue.token_recovery (
    singleton boolean primary key default true check (singleton),
    incarnation text
);
comment on column everyrun_queue.token_recovery.singleton is 'Always true: there is one row.';
comment on column everyrun_queue.token_recovery.incarnation is 'The result of everyrun_queue.incarnation() when revocations were last read from the log.';
insert into everyrun_queue.token_recovery default values;
comment on table everyrun_queue.token_recovery is
    'The incarnation of the database (the period since its last restart, failover or restore) in which revoked tokens were last read from the log. In a new incarnation, no token is accepted until they have been read again.';

create function everyrun_queue.incarnation() returns text language sql stable as $$
    select pg_postmaster_start_time()::text || ' ' || (select oid from pg_database where datname = current_database())
           || ' ' || pg_relation_filenode('everyrun_queue.chunks')
$$;
comment on function everyrun_queue.incarnation() is
    'Returns a text that changes if the database is restarted, fails over, or is restored or replaced. After such a change, the queue may be older than the log.';

create table everyrun_queue.submission_loads (
    submission_id text collate "C" primary key,
    workflow_id text collate "C" not null,
    priority smallint not null,
    max_open_inputs int not null,
    ready_chunks int not null,
    open_inputs bigint not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
comment on table everyrun_queue.submission_loads is
    'One row per submission that has chunks to send or open inputs. From it, the function claim chooses the next submission. The rows follow from chunks and load_changes.';
comment on column everyrun_queue.submission_loads.submission_id is 'The submission.';
comment on column everyrun_queue.submission_loads.workflow_id is 'The workflow of the submission.';
comment on column everyrun_queue.submission_loads.priority is 'Priority of the submission: lower numbers are sent first.';
comment on column everyrun_queue.submission_loads.max_open_inputs is
    'Maximum number of open inputs that the submission asked for. 0 for none.';
comment on column everyrun_queue.submission_loads.ready_chunks is 'Number of chunks that can be claimed now.';
comment on column everyrun_queue.submission_loads.open_inputs is 'Sum of chunks.open_inputs of the submission.';
create index submission_loads_ready on everyrun_queue.submission_loads (workflow_id, priority, open_inputs, submission_id)
    where ready_chunks > 0;
create index submission_loads_idle on everyrun_queue.submission_loads (submission_id) where ready_chunks = 0 and open_inputs = 0;

create table everyrun_queue.workflow_loads (
    workflow_id text collate "C" primary key,
    ready_chunks bigint not null,
    open_inputs bigint not null,
    max_open_inputs int not null default 0
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
comment on table everyrun_queue.workflow_loads is 'One row per workflow to which inputs were submitted: the sums of submission_loads, and the sending window.';
comment on column everyrun_queue.workflow_loads.workflow_id is 'The workflow.';
comment on column everyrun_queue.workflow_loads.ready_chunks is 'Number of chunks that can be claimed now.';
comment on column everyrun_queue.workflow_loads.open_inputs is 'Number of inputs that are, or may be, open at Extend.';
comment on column everyrun_queue.workflow_loads.max_open_inputs is
    'The sending window: EVERYRUN_MAX_OPEN_INPUTS of the process that last looked for chunks to send. 0 for none. This column is only for display.';

-- Changes are appended, and added to the loads by the next claim. Updating the loads directly would make transactions
-- that change chunks wait for each other.
create table everyrun_queue.load_changes (
    change_id bigint generated always as identity primary key,
    submission_id text collate "C" not null,
    ready_chunks bigint not null,
    open_inputs bigint not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
comment on table everyrun_queue.load_changes is
    'Changes of chunks that are not yet added to submission_loads and workflow_loads. Triggers of chunks insert them.';
comment on column everyrun_queue.load_changes.change_id is 'Number of the change.';
comment on column everyrun_queue.load_changes.submission_id is 'The submission.';
comment on column everyrun_queue.load_changes.ready_chunks is 'By how much the number of chunks that can be claimed changed.';
comment on column everyrun_queue.load_changes.open_inputs is 'By how much the number of open inputs changed.';

create function everyrun_queue.record_load_changes() returns trigger language plpgsql as $$
begin
    if tg_op = 'TRUNCATE' then
        truncate everyrun_queue.load_changes, everyrun_queue.submission_loads, everyrun_queue.workflow_loads;
    elsif tg_op = 'INSERT' then
        insert into everyrun_queue.load_changes (submission_id, ready_chunks, open_inputs)
        select submission_id, sum(ready::int), sum(open_inputs) from after_change group by submission_id;
    elsif tg_op = 'UPDATE' then
        insert into everyrun_queue.load_changes (submission_id, ready_chunks, open_inputs)
        select submission_id, sum(ready_chunks), sum(open_inputs)
        from (
            select submission_id, ready::int as ready_chunks, open_inputs from after_change
            union all
            select submission_id, -ready::int, -open_inputs from before_change
        ) changes
        group by submission_id
        having sum(ready_chunks) <> 0 or sum(open_inputs) <> 0;
    else
        insert into everyrun_queue.load_changes (submission_id, ready_chunks, open_inputs)
        select submission_id, -sum(ready::int), -sum(open_inputs) from before_change group by submission_id;
    end if;
    return null;
end $$;
create trigger record_load_of_inserted after insert on everyrun_queue.chunks
    referencing new table as after_change for each statement execute function everyrun_queue.record_load_changes();
create trigger record_load_of_updated after update on everyrun_queue.chunks
    referencing old table as before_change new table as after_change
    for each statement execute function everyrun_queue.record_load_changes();
create trigger record_load_of_deleted after delete on everyrun_queue.chunks
    referencing old table as before_change for each statement execute function everyrun_queue.record_load_changes();

create trigger record_load_of_truncated after truncate on everyrun_queue.chunks
    for each statement execute function everyrun_queue.record_load_changes();

create function everyrun_queue.lock_loads() returns void language sql as $$
    select pg_advisory_xact_lock(hashtextextended('everyrun_queue.loads', 0))
$$;
comment on function everyrun_queue.lock_loads() is
    'Waits until this transaction alone may claim chunks and change the loads. So no two claims use the same free part of a sending window.';

create function everyrun_queue.update_loads() returns void language plpgsql set enable_seqscan = off as $$
begin
    -- Chunks whose not_before has passed can be claimed.
    update everyrun_queue.chunks set not_before = '-infinity'
    where chunk = any (array(
        select c.chunk from everyrun_queue.chunks c
        where c.state = 'waiting' and c.not_before > '-infinity' and c.not_before <= now()
        order by c.not_before limit 1000 for update skip locked));
    if not exists (select from everyrun_queue.load_changes order by change_id limit 1) then
        return;
    end if;
    with changes as (
        delete from everyrun_queue.load_changes where change_id > 0
        returning submission_id, ready_chunks, open_inputs
    ),
    sums as (
        select submission_id, sum(ready_chunks) as ready_chunks, sum(open_inputs) as open_inputs
        from changes group by submission_id
    ),
    per_submission as (
        select c.*, s.workflow_id, s.priority, s.max_open_inputs
        from sums c
        -- With the limit, Postgres looks up each submission, and never reads the whole table.
        cross join lateral (
            select workflow_id, coalesce(priority, 100) as priority, coalesce(max_open_inputs, 0) as max_open_inputs
            from everyrun_queue.submissions s where s.submission_id = c.submission_id limit 1
        ) s
    ),
    submissions as (
        insert into everyrun_queue.submission_loads as l
            (submission_id, workflow_id, priority, max_open_inputs, ready_chunks, open_inputs)
        select submission_id, workflow_id, priority, max_open_inputs, ready_chunks, open_inputs from per_submission
        on conflict (submission_id) do update
        set ready_chunks = l.ready_chunks + excluded.ready_chunks, open_inputs = l.open_inputs + excluded.open_inputs
    )
    insert into everyrun_queue.workflow_loads as l (workflow_id, ready_chunks, open_inputs)
    select workflow_id, sum(ready_chunks), sum(open_inputs) from per_submission group by workflow_id
    on conflict (workflow_id) do update
    set ready_chunks = l.ready_chunks + excluded.ready_chunks, open_inputs = l.open_inputs + excluded.open_inputs;
    delete from everyrun_queue.submission_loads where ready_chunks = 0 and open_inputs = 0;
end $$;
comment on function everyrun_queue.update_loads() is
    'Brings the loads up to date with the chunks. Must be called under lock_loads.';

create function everyrun_queue.next_chunk(max_open int) returns text language plpgsql
set enable_seqscan = off set enable_sort = off set enable_incremental_sort = off as $$
declare
    candidate record;
    next record;
    full_workflows text[] := '{}';
    passed_over text[] := '{}';
begin
    loop
        -- Lower priority numbers first, then the submission with the fewest open inputs, then the oldest.
        select s.submission_id, s.workflow_id, s.open_inputs, s.max_open_inputs, w.open_inputs as open_of_workflow
        into candidate
        from everyrun_queue.workflow_loads w
        cross join lateral (
            select l.* from everyrun_queue.submission_loads l
            where l.workflow_id = w.workflow_id and l.ready_chunks > 0
              and (l.max_open_inputs = 0 or l.open_inputs < l.max_open_inputs)
              and l.submission_id <> all (passed_over)
            order by l.priority, l.open_inputs, l.submission_id limit 1
        ) s
        -- The condition on workflow_id makes Postgres use the index, and so never read dead rows.
        where w.workflow_id > '' and w.ready_chunks > 0 and (max_open = 0 or w.open_inputs < max_open)
          and w.workflow_id <> all (full_workflows)
        order by s.priority, s.open_inputs, s.submission_id limit 1;
        if not found then
            return null;
        end if;
        -- The range, the order and the settings leave Postgres only the index chunks_ready, whatever its statistics say.
        select c.chunk, c.last_position - c.first_position + 1 as inputs into next
        from everyrun_queue.chunks c
        where c.submission_id >= candidate.submission_id and c.submission_id <= candidate.submission_id and c.ready
        order by c.submission_id, c.chunk limit 1 for update skip locked;
        if not found then
            -- Another transaction is changing these chunks.
            passed_over := passed_over || candidate.submission_id;
        elsif max_open > 0 and candidate.open_of_workflow > 0
              and candidate.open_of_workflow + next.inputs > max_open then
            -- No smaller chunk of the workflow goes first. Otherwise a large chunk could wait for ever.
            full_workflows := full_workflows || candidate.workflow_id;
        elsif candidate.max_open_inputs > 0 and candidate.open_inputs > 0
              and candidate.open_inputs + next.inputs > candidate.max_open_inputs then
            passed_over := passed_over || candidate.submission_id;
        else
            return next.chunk;
        end if;
    end loop;
end $$;
comment on function everyrun_queue.next_chunk(int) is
    'Locks and returns the chunk to send next, or null. max_open is the sending window: the maximum number of open inputs per workflow, 0 for none. A chunk larger than the window is returned only if no input of its workflow is open. Must be called under lock_loads.';

create function everyrun_queue.can_claim(max_open int) returns boolean language plpgsql set enable_seqscan = off as $$
begin
    perform everyrun_queue.lock_loads();
    perform everyrun_queue.update_loads();
    update everyrun_queue.workflow_loads set max_open_inputs = max_open where workflow_id > '' and max_open_inputs <> max_open;
    return everyrun_queue.next_chunk(max_open) is not null;
end $$;
comment on function everyrun_queue.can_claim(int) is
    'Returns true if a chunk may be ready to be sent, and the sending window has room for it.';

create function everyrun_queue.claim(
    claimed_by text, ends_after double precision, known_incarnation text, max_open int
) returns table (claimed text, ends_at timestamptz) language plpgsql set enable_seqscan = off as $$
declare
    next text;
    given everyrun_queue.submissions;
    obstacle text;
    marked int;
    skipped_chunks int := 0;
begin
    if everyrun_queue.incarnation() <> known_incarnation then
        return;
    end if;
    perform everyrun_queue.lock_loads();
    perform everyrun_queue.update_loads();
    for round in 1..1000 loop
        next := everyrun_queue.next_chunk(max_open);
        if next is null then
            return;
        end if;
        select s.* into given from everyrun_queue.submissions s
        where s.submission_id = (select c.submission_id from everyrun_queue.chunks c where c.chunk = next);
        -- Lock the obstacle until the chunks are marked as skipped: whoever removes it restores all skipped chunks.
        obstacle := null;
        if given.announced_at is null then
            perform from everyrun_queue.submissions s
            where s.submission_id = given.submission_id and s.announced_at is null for share;
            obstacle := case when found then 'submission' end;
        end if;
        if obstacle is null then
            select p.kind into obstacle from everyrun_queue.paused p
            where (p.kind = 'workflow' and p.id = given.workflow_id)
               or (p.kind = 'submission' and p.id = given.submission_id)
            order by p.kind desc limit 1 for share;
        end if;
        if obstacle is null and given.redacted_at is not null and exists (
                select from everyrun_queue.inputs i join everyrun_queue.chunks c on c.chunk = next
                where i.submission_id = given.submission_id and i.position between c.first_position and c.last_position
                  and i.file like '%"redacted":true}') then
            obstacle := 'chunk';
        end if;
        if obstacle is null then
            return query
                update everyrun_queue.chunks c
                set state = 'sending', attempt = c.attempt + 1, owner = claimed_by, reason = null, settled = 0,
                    deadline = clock_timestamp() + make_interval(secs => ends_after)
                where c.chunk = next
                returning c.chunk, c.deadline;
            return;
        end if;
        update everyrun_queue.chunks set skipped = true
        where chunk = any (array(
            select c.chunk from everyrun_queue.submission_loads l
            join everyrun_queue.chunks c on c.submission_id = l.submission_id and c.ready
            where l.ready_chunks > 0 and l.workflow_id = given.workflow_id
              and (obstacle = 'workflow' or l.submission_id = given.submission_id)
              and (obstacle <> 'chunk' or c.chunk = next)
            limit 1000 for update of c skip locked));
        get diagnostics marked = row_count;
        skipped_chunks := skipped_chunks + marked;
        if skipped_chunks >= 5000 then
            return;
        end if;
        perform everyrun_queue.update_loads();
    end loop;
end $$;
comment on function everyrun_queue.claim(text, double precision, text, int) is
    'Claims the next chunk that may be sent (see next_chunk). Claims are made one after another, and no claim exceeds the sending window. Marks chunks that must be skipped, about five thousand per call.';

create table everyrun_queue.settled_samples (
    submission_id text collate "C" not null,
    sampled_at timestamptz not null,
    settled bigint not null,
    primary key (submission_id, sampled_at)
);
comment on table everyrun_queue.settled_samples is
    'How many inputs of a submission were settled, about every 15 seconds while it has open inputs. The time left is estimated from the samples. They are kept for an hour.';
comment on column everyrun_queue.settled_samples.submission_id is 'The submission.';
comment on column everyrun_queue.settled_samples.sampled_at is 'When the inputs were counted.';
comment on column everyrun_queue.settled_samples.settled is 'Number of settled inputs in the result tables at that time.';
create index settled_samples_old on everyrun_queue.settled_samples (sampled_at);

-- In plpgsql, which looks up its tables when it is called, because the schema everyrun can be dropped, rebuilt and swapped.
create function everyrun_queue.count_settled(watched_for double precision) returns int language plpgsql as $$
declare
    changed int := 0;
begin
    -- One process at a time is enough.
    if not pg_try_advisory_xact_lock(hashtextextended('everyrun_queue.count_settled', 0)) then
        return 0;
    end if;
    update everyrun_queue.chunks c set settled = counted.settled
    from (
        select q.chunk, q.last_position - q.first_position + 1 - greatest(known.open, 0) as settled
        from everyrun_queue.chunks q
        cross join lateral (
            select count(*) as attempts, sum(
                case when b.submitted_at < now() - make_interval(secs => watched_for) then 0
                else
                    (select coalesce(sum(n.value::int), 0) from jsonb_each_text(b.counts) n
                     where n.key not in ('PROCESSED', 'FAILED', 'CANCELLED', 'REJECTED', 'REFUSED', 'WAITING'))
                    -- Runs that were deleted at Extend.
                    - (select count(*) from everyrun_queue.gone_runs g join everyrun.results r on r.run_id = g.run_id
                       where g.batch_id = b.batch_id
                         and r.status not in ('PROCESSED', 'FAILED', 'CANCELLED', 'REJECTED'))
                    -- Inputs without a run in a complete list of the batch, an hour after it was sent: none will come.
                    - least(coalesce((b.counts ->> 'SUBMITTED')::int, 0),
                            coalesce((select greatest(b.expected - p.listed, 0) from everyrun_queue.polls p
                                      where p.batch_id = b.batch_id
                                        and p.complete_at > b.submitted_at + interval '1 hour'), 0))
                end)::int as open
            from everyrun.batches b
            where b.chunk = q.chunk and b.state in ('SUBMITTED', 'SETTLED')
        ) known
        where q.state = 'submitted' and q.open_inputs > 0 and known.attempts > 0
          and q.last_position - q.first_position + 1 - greatest(known.open, 0) > q.settled
        for update of q skip locked
    ) counted
    where c.chunk = counted.chunk;
    get diagnostics changed = row_count;
    update everyrun_queue.chunks c set credits = used.credits
    from (
        select q.chunk,
               coalesce((select sum(r.credits) from unnest(b.input_ids) i (id) join everyrun.results r on r.input_id = i.id
                         where r.chunk = q.chunk), 0)
               + coalesce((select sum(o.credits) from everyrun.other_runs o
                           join everyrun.batches a on a.batch_id = o.batch_id where a.chunk = q.chunk), 0) as credits
        from everyrun_queue.chunks q
        join lateral (
            select input_ids from everyrun.batches s where s.chunk = q.chunk and s.state = 'SETTLED'
            order by s.attempt desc limit 1
        ) b on true
        where q.state = 'submitted' and q.open_inputs = 0 and q.credits is null
        limit 20
    ) used
    where c.chunk = used.chunk;
    insert into everyrun_queue.settled_samples (submission_id, sampled_at, settled)
    select l.submission_id, now(), (
        select coalesce(sum(n.value::bigint), 0) from everyrun.batches b, jsonb_each_text(b.counts) n
        where b.submission_id = l.submission_id
          and n.key in ('PROCESSED', 'FAILED', 'CANCELLED', 'REJECTED', 'REFUSED'))
    from everyrun_queue.submission_loads l
    where l.open_inputs > 0 and not exists (
        select from everyrun_queue.settled_samples s
        where s.submission_id = l.submission_id and s.sampled_at > now() - interval '14 seconds')
    on conflict do nothing;
    delete from everyrun_queue.settled_samples where sampled_at < now() - interval '1 hour';
    return changed;
exception
    when undefined_table then
        return 0;
end $$;
comment on function everyrun_queue.count_settled(double precision) is
    'Updates chunks.settled and chunks.credits from the result tables, adds a sample of each submission with open inputs to settled_samples, and returns the number of chunks with more settled inputs. Inputs that were sent longer than watched_for seconds ago count as settled, because the reconciler no longer watches them. While the result tables do not exist, nothing changes.';

create table everyrun_queue.receivers (
    receiver_id text collate "C" primary key,
    url text not null,
    format text not null check (format in ('extend', 'everyrun')),
    events text[] not null check (events <> '{}'),
    workflows text[] not null default '{}',
    description text not null default '',
    state text not null default 'active' check (state in ('active', 'paused', 'removed')),
    secret text not null,
    previous_secret text,
    previous_until timestamptz,
    created_at timestamptz not null default now(),
    created_by text not null,
    failures int not null default 0,
    failing_since timestamptz,
    not_before timestamptz,
    last_error text
);
comment on table everyrun_queue.receivers is
    'Addresses to which the notifier sends events. The row of a removed receiver is deleted when its last delivery is.';
comment on column everyrun_queue.receivers.receiver_id is 'The id: rcv_ and 20 characters.';
comment on column everyrun_queue.receivers.url is 'The address. It can contain a secret, so answers and logs show it without user and query.';
comment on column everyrun_queue.receivers.format is 'extend: Extend''s events in Extend''s format. everyrun: Everyrun''s own events as Standard Webhooks.';
comment on column everyrun_queue.receivers.events is 'The events that the receiver gets.';
comment on column everyrun_queue.receivers.workflows is 'The receiver gets only events of these workflows. Empty if it gets the events of all workflows.';
comment on column everyrun_queue.receivers.description is 'What the receiver is for, as the person who added it wrote.';
comment on column everyrun_queue.receivers.state is 'active, paused (its deliveries wait) or removed.';
comment on column everyrun_queue.receivers.secret is
    'The signing secret, in plain text, because signing needs it. Empty if the receiver was removed.';
comment on column everyrun_queue.receivers.previous_secret is 'The secret before the last rotation. It is used until previous_until. Null if there is none.';
comment on column everyrun_queue.receivers.previous_until is 'The end of the time in which both secrets are valid.';
comment on column everyrun_queue.receivers.created_at is 'When the receiver was added.';
comment on column everyrun_queue.receivers.created_by is 'Who added the receiver.';
comment on column everyrun_queue.receivers.failures is 'Number of requests that failed in a row. 0 after a success.';
comment on column everyrun_queue.receivers.failing_since is 'When the first of these requests failed. Null after a success.';
comment on column everyrun_queue.receivers.not_before is 'While requests fail again and again: the earliest time of the next request. Null otherwise.';
comment on column everyrun_queue.receivers.last_error is 'Why the last request failed. Null after a success.';

create table everyrun_queue.receiver_changes (
    change_id text collate "C" primary key,
    receiver_id text collate "C" not null,
    change text not null,
    changed_by text not null,
    changed_at timestamptz not null default now()
);
comment on table everyrun_queue.receiver_changes is
    'Changes of receivers by people that are not in the log yet. A row is deleted when Kafka has acknowledged its event receiver-changed.';
comment on column everyrun_queue.receiver_changes.change_id is 'The id: chg_ and 20 characters.';
comment on column everyrun_queue.receiver_changes.receiver_id is 'The receiver.';
comment on column everyrun_queue.receiver_changes.change is 'added, paused, resumed, secret-rotated or removed.';
comment on column everyrun_queue.receiver_changes.changed_by is 'Who changed it.';
comment on column everyrun_queue.receiver_changes.changed_at is 'When it was changed.';

create table everyrun_queue.receiver_starts (
    receiver_id text collate "C" not null,
    topic text collate "C" not null,
    partition int not null,
    first_offset bigint not null,
    cluster_id text not null,
    primary key (receiver_id, topic, partition)
);
comment on table everyrun_queue.receiver_starts is
    'Where the log ended when a receiver was added. The receiver gets only events from there on.';
comment on column everyrun_queue.receiver_starts.receiver_id is 'The receiver.';
comment on column everyrun_queue.receiver_starts.topic is 'The topic, without EVERYRUN_TOPIC_PREFIX.';
comment on column everyrun_queue.receiver_starts.partition is 'The number of the partition.';
comment on column everyrun_queue.receiver_starts.first_offset is 'The offset of the first record that the receiver can get.';
comment on column everyrun_queue.receiver_starts.cluster_id is 'Id of the Kafka cluster.';

create table everyrun_queue.notifier_positions (
    topic text collate "C" not null,
    partition int not null,
    next_offset bigint not null,
    cluster_id text not null,
    primary key (topic, partition)
);
comment on table everyrun_queue.notifier_positions is
    'How far the notifier has read the log. It is committed together with the deliveries of the records before it.';
comment on column everyrun_queue.notifier_positions.topic is 'The topic, without EVERYRUN_TOPIC_PREFIX.';
comment on column everyrun_queue.notifier_positions.partition is 'The number of the partition.';
comment on column everyrun_queue.notifier_positions.next_offset is 'The offset of the next record to read.';
comment on column everyrun_queue.notifier_positions.cluster_id is 'Id of the Kafka cluster.';

create table everyrun_queue.notifications (
    notification_id text collate "C" primary key,
    event text not null,
    subject text not null,
    body bytea not null,
    created_at timestamptz not null default now()
);
comment on table everyrun_queue.notifications is
    'Events that at least one receiver gets, with the body that is sent. They are kept for EVERYRUN_NOTIFY_KEPT.';
comment on column everyrun_queue.notifications.notification_id is 'The id: ntf_ and a hash of the change that the event describes.';
comment on column everyrun_queue.notifications.event is 'The name of the event.';
comment on column everyrun_queue.notifications.subject is 'What the event is about: the id of a run, a submission, a chunk, a workflow, or the source of a quarantined message.';
comment on column everyrun_queue.notifications.body is 'The body that is sent, byte for byte.';
comment on column everyrun_queue.notifications.created_at is 'When the notifier read the event from the log.';
create index notifications_created on everyrun_queue.notifications (created_at);

create table everyrun_queue.notification_deliveries (
    receiver_id text collate "C" not null,
    notification_id text collate "C" not null,
    state text not null default 'waiting' check (state in ('waiting', 'delivered', 'given_up')),
    attempts int not null default 0,
    not_before timestamptz not null default now(),
    retry_until timestamptz not null,
    tries jsonb not null default '[]',
    created_at timestamptz not null default now(),
    ended_at timestamptz,
    primary key (receiver_id, notification_id)
);
comment on table everyrun_queue.notification_deliveries is 'The delivery of each notification to each of its receivers, with the log of its tries.';
comment on column everyrun_queue.notification_deliveries.receiver_id is 'The receiver.';
comment on column everyrun_queue.notification_deliveries.notification_id is 'The notification.';
comment on column everyrun_queue.notification_deliveries.state is 'waiting, delivered (a request was answered with 2xx), or given_up.';
comment on column everyrun_queue.notification_deliveries.attempts is 'Number of requests that were sent, or were about to be sent when a process ended.';
comment on column everyrun_queue.notification_deliveries.not_before is
    'While it is waiting: when the next request is due. While a request is in progress: when it is sent again if its process has ended.';
comment on column everyrun_queue.notification_deliveries.retry_until is 'The delivery is given up after this time.';
comment on column everyrun_queue.notification_deliveries.tries is
    'The last 20 requests: time, status, seconds, and the first characters of the answer or the error.';
comment on column everyrun_queue.notification_deliveries.created_at is 'When the notifier read the event from the log.';
comment on column everyrun_queue.notification_deliveries.ended_at is 'When it was delivered or given up. Null while it is waiting.';
create index notification_deliveries_due on everyrun_queue.notification_deliveries (receiver_id, not_before) where state = 'waiting';
create index notification_deliveries_late on everyrun_queue.notification_deliveries (retry_until) where state = 'waiting';
create index notification_deliveries_listed on everyrun_queue.notification_deliveries (receiver_id, created_at, notification_id);
create index notification_deliveries_of on everyrun_queue.notification_deliveries (notification_id);

create table everyrun_queue.replay_jobs (
    job_id text collate "C" primary key,
    kind text not null,
    arguments jsonb not null,
    state text not null default 'WAITING',
    asked_by text not null,
    records_done bigint not null default 0,
    records_total bigint not null default 0,
    rate double precision not null default 0,
    seconds_left double precision,
    outcome jsonb,
    message text,
    created_at timestamptz not null default now(),
    started_at timestamptz,
    ended_at timestamptz
);
comment on column everyrun_queue.replay_jobs.job_id is 'The id: job_ and 20 characters.';
comment on column everyrun_queue.replay_jobs.kind is 'rebuild, audit, as-of, replay, archive or archive-verify.';
comment on column everyrun_queue.replay_jobs.arguments is 'The arguments of the request.';
comment on column everyrun_queue.replay_jobs.state is 'WAITING, RUNNING, DONE, FAILED or CANCELLED.';
comment on column everyrun_queue.replay_jobs.asked_by is 'The name of the token with which the job was requested.';
comment on column everyrun_queue.replay_jobs.records_done is 'Number of log records read so far.';
comment on column everyrun_queue.replay_jobs.records_total is 'Number of log records to read.';
comment on column everyrun_queue.replay_jobs.rate is 'Current rate, in records per second.';
comment on column everyrun_queue.replay_jobs.seconds_left is
    'Estimated number of seconds until the job ends. Null if the rate is not known or the job is not running.';
comment on column everyrun_queue.replay_jobs.outcome is 'The result, if the job is DONE. Otherwise null.';
comment on column everyrun_queue.replay_jobs.message is 'Why the job failed, or what it waits for.';
comment on column everyrun_queue.replay_jobs.created_at is 'When the job was requested.';
comment on column everyrun_queue.replay_jobs.started_at is 'When the job first started.';
comment on column everyrun_queue.replay_jobs.ended_at is 'When the job ended.';
comment on table everyrun_queue.replay_jobs is 'Replay jobs that were requested over HTTP.';
create index replay_jobs_open on everyrun_queue.replay_jobs (created_at) where state in ('WAITING', 'RUNNING');

create index chunks_open on everyrun_queue.chunks (submission_id)
    where state in ('waiting', 'sending', 'in_doubt', 'held');

create function everyrun_queue.is_untold(submission text, given_retry int, position_of_first int)
returns boolean language plpgsql stable as $$
begin
    return given_retry > 0 and not exists (
        select from everyrun_queue.inputs i
        join everyrun.results r on r.input_id = i.submission_id || ':' || i.external_id
        where i.submission_id = submission and i.position = position_of_first
          and left(r.version, 4) >= lpad(to_hex(given_retry), 4, '0'));
end $$;
comment on function everyrun_queue.is_untold is
    'Returns true if a chunk of a retry is not in the result tables yet. Its inputs then have the status of their earlier try there. The tables learn of all inputs of a chunk at once, so it is enough to look at the first.';

-- In plpgsql, which looks up its tables when it is called, because the schema everyrun can be dropped, rebuilt and swapped.
create function everyrun_queue.unsent(
    submission text default null, after text default null, most bigint default null, wanted text default null
) returns table (
    chunk text, submission_id text, workflow_id text, first_position int, last_position int, input_ids text[],
    inputs bigint, attempt int, status text, waits_for text, until timestamptz, detail text, in_transit boolean,
    late_at timestamptz, created_at timestamptz
) language plpgsql stable set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
begin
return query
with queued as (
    select c.chunk, c.submission_id, c.retry, s.workflow_id, c.first_position, c.last_position, c.attempt, c.state, c.cancellation,
           case
               when c.ready and own.open_inputs > 0 and own.max_open_inputs > 0
                    and own.open_inputs + c.last_position - c.first_position + 1 > own.max_open_inputs
                   then own.max_open_inputs || ' inputs of the submission'
               when c.ready and whole.open_inputs > 0 and whole.max_open_inputs > 0
                    and whole.open_inputs + c.last_position - c.first_position + 1 > whole.max_open_inputs
                   then whole.max_open_inputs || ' inputs of the workflow'
           end as max_open,
           c.not_before, c.deadline, c.reason, c.skipped and s.redacted_at is not null as redacted,
           s.announced_at is not null and c.not_before < 'infinity' as announced, coalesce(x.created_at, s.created_at) as created_at, w.reason as workflow_reason,
           p.reason as submission_reason, coalesce(w.since, p.since) as paused_since,
           case c.state when 'waiting' then 'WAITING' when 'in_doubt' then 'IN_DOUBT' when 'held' then 'IN_DOUBT'
                else 'SENDING' end as status
    from everyrun_queue.chunks c
    join everyrun_queue.submissions s on s.submission_id = c.submission_id
    left join everyrun_queue.retries x on x.submission_id = c.submission_id and x.retry = c.retry
    left join everyrun_queue.paused w on w.kind = 'workflow' and w.id = s.workflow_id
    left join everyrun_queue.paused p on p.kind = 'submission' and p.id = s.submission_id
    left join everyrun_queue.submission_loads own on own.submission_id = s.submission_id
    left join everyrun_queue.workflow_loads whole on whole.workflow_id = s.workflow_id
    where c.state <> 'cut'
      and (c.submission_id = submission
           or (submission is null and c.state in ('waiting', 'sending', 'in_doubt', 'held')))
      and (after is null or c.chunk >= after)
      and (wanted is null
           or wanted = case c.state when 'waiting' then 'WAITING' when 'in_doubt' then 'IN_DOUBT'
                                    when 'held' then 'IN_DOUBT' else 'SENDING' end)
      -- Chunks with rows in the result tables have their status there.
      and not exists (
          select from everyrun.batches b where b.chunk = c.chunk and b.state in ('SUBMITTED', 'SETTLED', 'REFUSED', 'CANCELLED'))
    order by c.chunk
    limit most
),
compared as (
    select q.*, l.requested_at,
           case
               when q.state in ('submitted', 'refused', 'cancelled') then 'in_transit'
               when q.state = 'held' then 'held'
               when q.state in ('waiting', 'in_doubt') and q.cancellation is not null then 'cancelling'
               when q.state = 'in_doubt' and q.deadline > now() then 'in_doubt'
               when q.state = 'in_doubt' then 'sweeps'
               when q.state = 'sending' then 'calling'
               when not q.announced then 'unannounced'
               when q.workflow_reason is not null then 'workflow_paused'
               when q.submission_reason is not null then 'submission_paused'
               when q.redacted then 'secrets_removed'
               when q.not_before > now() then 'retry'
               when q.max_open is not null then 'sending_window'
               else 'queued'
           end as waits_for,
           q.state in ('submitted', 'refused', 'cancelled') or (q.state <> 'held' and q.status <> l.status)
               or everyrun_queue.is_untold(q.submission_id, q.retry, q.first_position) as in_transit
    from queued q
    left join lateral (
        select case when bool_or(b.state = 'IN_DOUBT') then 'IN_DOUBT' when bool_or(b.state = 'SENDING') then 'SENDING'
                    else 'WAITING' end as status,
               max(b.requested_at) filter (where b.attempt = q.attempt) as requested_at
        from everyrun.batches b where b.chunk = q.chunk
    ) l on true
)
select c.chunk, c.submission_id, c.workflow_id, c.first_position, c.last_position, null::text[],
       (c.last_position - c.first_position + 1)::bigint, c.attempt, c.status, c.waits_for,
       case c.waits_for when 'calling' then c.deadline when 'in_doubt' then c.deadline when 'retry' then c.not_before
                when 'cancelling' then case when c.state = 'in_doubt' then c.deadline end end,
       case c.waits_for when 'workflow_paused' then c.workflow_reason when 'submission_paused' then c.submission_reason
            when 'sending_window' then c.max_open else c.reason end,
       c.in_transit,
       case c.waits_for
           when 'unannounced' then c.created_at + interval '1 minute'
           when 'workflow_paused' then c.paused_since
           when 'submission_paused' then c.paused_since
           when 'calling' then coalesce(c.requested_at + interval '1 minute', c.deadline)
           when 'in_doubt' then '-infinity'
           when 'sweeps' then '-infinity'
           when 'cancelling' then coalesce(case when c.state = 'in_doubt' then c.deadline end, now()) + interval '10 minutes'
           when 'held' then '-infinity'
           when 'secrets_removed' then '-infinity'
       end::timestamptz,
       c.created_at
from compared c
union all
-- Chunks of the submission that the log has, but that are missing in the restored queue.
select b.chunk, min(b.submission_id), min(b.workflow_id), null::int, null::int,
       (select n.input_ids from everyrun.batches n where n.chunk = b.chunk order by n.attempt desc limit 1),
       max(b.expected)::bigint, max(b.attempt),
       case when bool_or(b.state = 'IN_DOUBT') then 'IN_DOUBT' when bool_or(b.state = 'SENDING') then 'SENDING'
            else 'WAITING' end,
       'queue_lost', null, null, false, '-infinity'::timestamptz, min(b.requested_at)
from everyrun.batches b
where b.submission_id = submission and (after is null or b.chunk >= after)
  and not exists (select from everyrun_queue.chunks c where c.chunk = b.chunk)
group by b.chunk
having not bool_or(b.state in ('SUBMITTED', 'SETTLED', 'REFUSED', 'CUT', 'CANCELLED'));
end $$;
comment on function everyrun_queue.unsent is
    'Returns the chunks whose inputs have no row in everyrun.results, of one submission or of all: their status, what they wait for, and until when. in_transit is true if the result tables do not show this status yet.';

-- migrate:down
drop schema everyrun_queue cascade;
