-- migrate:up
-- No schema name in this file: a rebuild creates the same tables in another schema, beside the live ones.
do $$
begin
    execute format('comment on schema %I is %L', current_schema(),
        'The result tables, made from the Kafka topics. Only the processor writes them. If the schema is dropped, the processor rebuilds it row for row.');
end $$;

create table applied_offsets (
    topic text collate "C" not null,
    partition int not null,
    next_offset bigint not null,
    cluster_id text not null,
    partitions int not null,
    primary key (topic, partition)
);
comment on column applied_offsets.topic is 'The topic, without EVERYRUN_TOPIC_PREFIX.';
comment on column applied_offsets.partition is 'The number of the partition.';
comment on column applied_offsets.next_offset is 'Offset of the next record to apply.';
comment on column applied_offsets.cluster_id is
    'Id of the Kafka cluster from which these tables were made. The processor refuses to apply records of another cluster.';
comment on column applied_offsets.partitions is
    'Number of partitions that the topics batches and runs had when these tables were created. The processor refuses to run if this number has changed, because Kafka would then send the events of one key to another partition.';
comment on table applied_offsets is 'One row per partition of the topics: how far the processor has applied it to these tables. Each transaction that changes the tables also updates this row.';

create table submissions (
    submission_id text collate "C" primary key,
    workflow_id text not null,
    workflow_version text,
    priority smallint,
    expected bigint not null,
    created_at timestamptz not null
);
comment on table submissions is 'One row per accepted submission, and one per registered batch (a batch that another program sent to Extend).';
comment on column submissions.submission_id is
    'The id that everyrun submit prints: sub_ and 26 characters. Ids sort in the order in which they were created.';
comment on column submissions.workflow_id is 'Extend''s id of the workflow.';
comment on column submissions.workflow_version is 'The requested version of the workflow. Null if none was requested: Extend then uses the newest published version.';
comment on column submissions.expected is 'Number of inputs in the submission.';
comment on column submissions.created_at is 'When Everyrun accepted the submission, or when the batch was registered.';

comment on column submissions.priority is 'Priority at Extend, from 1 (first) to 100 (last). Null for a registered batch.';

create table batches (
    chunk text collate "C" not null,
    attempt int not null,
    batch_id text collate "C" unique,
    submission_id text collate "C" not null,
    workflow_id text,
    workflow_version text,
    priority smallint,
    expected int not null,
    state text not null,
    reason text,
    requested_at timestamptz,
    returned_at timestamptz,
    in_doubt_at timestamptz,
    resent_at timestamptz,
    rejected_at timestamptz,
    cut_at timestamptz,
    cancelled_at timestamptz,
    submitted_at timestamptz,
    settled_at timestamptz,
    counts jsonb not null default '{}',
    runs_observed int not null default 0,
    duplicates int not null default 0,
    superseded int not null default 0,
    input_ids text[] not null,
    fingerprints text[],
    primary key (chunk, attempt)
);
comment on column batches.chunk is
    'Id of the chunk: the inputs that are sent to Extend in one call. If a chunk is cut into smaller chunks, their ids are CHUNK-1, CHUNK-2, and so on.';
comment on column batches.attempt is 'Number of this attempt (call to Extend). The first attempt of a chunk is 1. 0 if the chunk was cancelled before its first attempt.';
comment on column batches.batch_id is 'Extend''s batchId. Null until it is known.';
comment on column batches.submission_id is 'The submission that the chunk belongs to.';
comment on column batches.workflow_id is 'The workflow that the chunk was sent to.';
comment on column batches.workflow_version is 'The requested version of the workflow. Null if none was requested: Extend then uses the newest published version.';
comment on column batches.priority is 'Priority at Extend, from 1 (first) to 100 (last). Null for a registered batch.';
comment on column batches.expected is 'Number of inputs in the attempt.';
comment on column batches.reason is
    'Why the attempt is in this state: an error, or a decision. Null if nothing unusual happened.';
comment on column batches.requested_at is 'When the worker announced the call, just before it called Extend.';
comment on column batches.returned_at is 'When it became clear that Extend did not accept this attempt. The chunk then waits to be sent again, or is held for a person''s decision.';
comment on column batches.in_doubt_at is 'When the call ended without a clear answer.';
comment on column batches.resent_at is 'When Everyrun or a person gave up this attempt, which was in doubt. The chunk is then sent again, as a new attempt.';
comment on column batches.rejected_at is 'When Extend refused the attempt, or a person discarded it.';
comment on column batches.cut_at is 'When Extend refused the attempt and the chunk was cut into smaller chunks, to find the inputs that Extend refuses.';
comment on column batches.cancelled_at is 'When the chunk was cancelled, and no accepted attempt was known.';
comment on column batches.submitted_at is 'When Extend accepted the attempt.';
comment on column batches.settled_at is 'When the last input of the batch settled.';
comment on column batches.duplicates is 'Number of this batch''s runs that are in other_runs and not superseded.';
comment on column batches.superseded is 'Number of this batch''s runs whose input has a newer try. They are in other_runs.';
comment on table batches is 'One row per attempt: one call to Extend that sends a chunk of inputs. A chunk that was cancelled before its first attempt has a row, too.';
comment on column batches.state is
    'SENDING; RETURNED (Extend did not accept it, but may accept the same inputs later); IN_DOUBT (the call got no clear answer); RESENT (it was in doubt, and the chunk is sent again); REFUSED (Extend refused it, or a person discarded it); CUT (Extend refused it, and its inputs continue in the smaller chunks CHUNK-1, CHUNK-2, ...); CANCELLED (a person cancelled the chunk, and no accepted attempt is known); SUBMITTED (Extend accepted it); SETTLED (Extend accepted it, Everyrun has seen all runs, and every input is settled).';
comment on column batches.counts is 'Number of inputs per status. Only inputs whose row in results names this attempt are counted here, so an input that was sent twice is counted once.';
comment on column batches.runs_observed is 'Number of this batch''s runs that were matched to an input.';
comment on column batches.input_ids is 'Ids of the inputs, in the order in which they were sent.';
comment on column batches.fingerprints is
    'For a registered batch: for each of the input_ids, the SHA-256 hash of its metadata, written as canonical JSON (RFC 8785). Runs are matched to the inputs by these hashes. Null for other batches.';
create index batches_submission on batches (submission_id, chunk);
create index batches_open on batches (submitted_at) where state = 'SUBMITTED';
create index batches_open_of on batches (submission_id) where state = 'SUBMITTED';
-- For listing the workflows, and when each had its first batch.
create index batches_begun on batches (workflow_id, coalesce(requested_at, submitted_at, in_doubt_at));
create index batches_unresolved on batches (chunk) where state in ('SENDING', 'IN_DOUBT');

create table results (
    input_id text collate "C" primary key,
    external_id text not null,
    submission_id text collate "C" not null,
    batch_id text collate "C",
    position int not null,
    chunk text collate "C" not null,
    attempt int not null,
    file jsonb not null,
    metadata jsonb not null,
    run_id text collate "C",
    status text not null,
    failure_reason text,
    failure_message text,
    run jsonb,
    credits double precision,
    source text,
    observed_at timestamptz,
    settled_at timestamptz,
    version text collate "C" not null
);
comment on column results.external_id is 'The id that the caller gave to the input. If the caller gave none, the position as text.';
comment on column results.batch_id is
    'Extend''s batchId of the attempt in the columns chunk and attempt. Null if Extend never accepted the input.';
comment on column results.position is 'Position of the input in its submission. The first input is 1.';
comment on column results.chunk is 'The chunk that was sent in the attempt (see the column attempt).';
comment on column results.attempt is 'Number of the attempt that started the current run. If no run is known: of the attempt that Extend accepted or refused, or after which the chunk was cancelled. 0 if it was cancelled before the first attempt, or if a new try waits to be sent.';
comment on column results.file is 'The file as it was submitted. The query string of its URL and its password are removed. An object in a bucket has its address and its ETag.';
comment on column results.run_id is 'Id of the current run: the run whose state this row shows. Null if no run is known yet.';
comment on column results.status is
    'WAITING (a new try waits to be sent; see everyrun_queue.unsent), SUBMITTED (accepted, but no run is known yet), REFUSED, CANCELLED without a run (cancelled before Extend accepted it), or Extend''s status of the current run: PENDING, PROCESSING, CANCELLING, NEEDS_REVIEW, PROCESSED, FAILED, CANCELLED, REJECTED.';
comment on column results.failure_reason is
    'If the run failed, Extend''s failureReason. If the input was refused, Extend''s error code, or DISCARDED if a person discarded it. If the input was cancelled before Extend accepted it: CANCELLED_UNSENT.';
comment on column results.failure_message is 'The message that explains failure_reason.';
comment on column results.credits is 'Credits that the current run used (usage.credits at Extend). Null if unknown.';
comment on column results.source is 'How Everyrun learned of the current run''s state: webhook or poll. Null if no run is known.';
comment on column results.observed_at is 'When Everyrun learned of the current run''s state. If no run is known: when the attempt was accepted or refused, or the chunk was cancelled.';
comment on column results.settled_at is 'When the input settled. Null until then.';
comment on table results is 'One row per input that Extend accepted, or that was refused, discarded or cancelled. This is an ordinary table, without triggers or generated columns.';
comment on column results.input_id is
    'SUBMISSION_ID:EXTERNAL_ID. To select all inputs of a submission by the primary key: input_id >= ''SUBMISSION_ID:'' and input_id < ''SUBMISSION_ID;''.';
comment on column results.submission_id is
    'The submission. No index has this column for all rows. To select all inputs of a submission, use a range of input_id.';
comment on column results.metadata is 'The metadata as it was submitted. The metadata that Extend returned is in the column run.';
comment on column results.run is 'The current run: the complete WorkflowRun that Extend returned. Only Everyrun''s reserved metadata key is removed.';
comment on column results.version is 'Version of the row''s state. Of two states of the row, the newer one has the greater version. Compare versions as text, with collate "C".';
create index results_run on results (run_id);
-- For pages of the runs of a batch, the run that changed last first.
create index results_batch on results (batch_id, observed_at, run_id) where run_id is not null;
-- Holds few rows: the ones that people list.
create index results_not_processed on results (submission_id, status, input_id)
    where status not in ('PROCESSED', 'SUBMITTED', 'PENDING', 'PROCESSING');
-- For questions about a period, over all submissions. Rows of a period lie near each other, and this kind of index keeps
-- only the least and the greatest time of each megabyte: it costs next to nothing when rows are written.
create index results_times on results using brin (observed_at, settled_at) with (autosummarize = on);

create table other_runs (
    run_id text collate "C" primary key,
    input_id text collate "C" not null,
    batch_id text collate "C" not null,
    chunk text collate "C" not null,
    attempt int not null,
    status text not null,
    failure_reason text,
    failure_message text,
    run jsonb not null,
    credits double precision,
    source text not null,
    observed_at timestamptz not null,
    settled_at timestamptz,
    version text collate "C" not null,
    superseded boolean not null
);
comment on column other_runs.superseded is 'True if the input has a newer try than the one that started this run. False for a duplicate: a further run of the try that results shows.';
comment on column other_runs.run_id is 'Extend''s id of the run.';
comment on column other_runs.input_id is 'Id of the input that the run processes.';
comment on column other_runs.batch_id is 'The batch that the run belongs to.';
comment on column other_runs.chunk is 'Id of the chunk that was sent as this batch.';
comment on column other_runs.attempt is 'Number of the attempt (call to Extend) that started the batch.';
comment on column other_runs.status is 'Extend''s status of the run.';
comment on column other_runs.failure_reason is 'If the run failed, Extend''s failureReason.';
comment on column other_runs.failure_message is 'The message that explains failure_reason.';
comment on column other_runs.run is
    'The complete WorkflowRun that Extend returned. Only Everyrun''s reserved metadata key is removed.';
comment on column other_runs.credits is 'Credits that the run used (usage.credits at Extend). Null if unknown.';
comment on column other_runs.source is 'How Everyrun learned of the run''s state: webhook or poll.';
comment on column other_runs.observed_at is 'When Everyrun learned of the run''s state.';
comment on column other_runs.settled_at is 'When the run ended. Null until then.';
comment on column other_runs.version is 'Version of the run''s state. Of two states of the run, the newer one has the greater version. Compare versions as text, with collate "C".';
comment on table other_runs is 'If an input has several runs, results shows its current run, and this table has the others.';
create index other_runs_input on other_runs (input_id);
create index other_runs_batch on other_runs (batch_id);

create table unmatched_runs (
    run_id text collate "C" primary key,
    batch_id text collate "C",
    metadata jsonb,
    status text not null,
    reason text not null,
    first_seen timestamptz not null,
    input_id text collate "C",
    installation text,
    chunk text collate "C",
    attempt int,
    failure_reason text,
    failure_message text,
    run jsonb not null,
    credits double precision,
    source text not null,
    observed_at timestamptz not null,
    settled_at timestamptz,
    version text collate "C" not null,
    fingerprints text[] not null,
    bindings jsonb not null
);
comment on column unmatched_runs.run_id is 'Extend''s id of the run.';
comment on column unmatched_runs.batch_id is 'Extend''s batchId of the run. Null if the run has none.';
comment on column unmatched_runs.metadata is 'The metadata that Extend returned for the run. Everyrun''s reserved key is removed.';
comment on column unmatched_runs.status is 'Extend''s status of the run.';
comment on column unmatched_runs.first_seen is 'When Everyrun first saw the run.';
comment on column unmatched_runs.input_id is 'The input that the run''s reserved metadata key (everyrun:input) names. Null if the run does not have this key.';
comment on column unmatched_runs.installation is 'The installation of Everyrun that the reserved key names. Null if there is no such key.';
comment on column unmatched_runs.chunk is 'The chunk that the reserved key names. Null if there is no such key.';
comment on column unmatched_runs.attempt is 'The attempt that the reserved key names. Null if there is no such key.';
comment on column unmatched_runs.failure_reason is 'If the run failed, Extend''s failureReason.';
comment on column unmatched_runs.failure_message is 'The message that explains failure_reason.';
comment on column unmatched_runs.credits is 'Credits that the run used (usage.credits at Extend). Null if unknown.';
comment on column unmatched_runs.source is 'How Everyrun learned of the run''s state: webhook or poll.';
comment on column unmatched_runs.observed_at is 'When Everyrun learned of the run''s state.';
comment on column unmatched_runs.settled_at is 'When the run ended. Null until then.';
comment on column unmatched_runs.version is 'Version of the run''s state. Of two states of the run, the newer one has the greater version. Compare versions as text, with collate "C".';
comment on table unmatched_runs is 'Runs that Everyrun could not match to an input so far.';
comment on column unmatched_runs.reason is
    'Why the run matches no input: batch_unknown or no_batch. If Everyrun sent the batch: no_reserved_key, reserved_key_of_another_batch or input_unknown. If the batch was registered: ambiguous_metadata or metadata_unknown.';
comment on column unmatched_runs.run is
    'The complete WorkflowRun. For a run that another caller started, Everyrun removes most of it after the time EVERYRUN_FOREIGN_RUNS_KEPT. Then only the main fields remain, such as status and metadata, and version ends in ~.';
comment on column unmatched_runs.fingerprints is
    'SHA-256 hash of the run''s metadata, written as canonical JSON (RFC 8785). If the metadata changed, one hash for each version of it, in the order in which the log has them.';
comment on column unmatched_runs.bindings is
    'All values of the reserved key (everyrun:input) that Everyrun has seen in this run, as a list sorted by chunk and attempt. Usually there is one. The columns input_id, installation, chunk and attempt show the first.';
create index unmatched_runs_batch on unmatched_runs (batch_id);
create index unmatched_runs_whole on unmatched_runs (first_seen) where right(version, 1) <> '~';
create index unmatched_runs_chunk on unmatched_runs (chunk, attempt);
-- Evidence for attempts in doubt, queried every second: few rows, however many foreign runs are unmatched.
create index unmatched_runs_evidence on unmatched_runs (installation, chunk, attempt)
    where reason = 'batch_unknown' and batch_id is not null and installation is not null;

create table deliveries (
    run_id text collate "C" not null,
    event_type text not null,
    chunk text collate "C",
    attempt int,
    input_id text collate "C",
    first_seen timestamptz not null,
    primary key (run_id, event_type)
);
comment on column deliveries.run_id is 'The run that the webhook describes.';
comment on column deliveries.event_type is 'Extend''s eventType of the webhook.';
comment on column deliveries.chunk is
    'The chunk that the reserved key in the webhook''s metadata names. Null if there is no such key.';
comment on column deliveries.attempt is 'The attempt that the reserved key names. Null if there is no such key.';
comment on column deliveries.input_id is 'The input that the reserved key names. Null if there is no such key.';
comment on column deliveries.first_seen is 'When the first webhook about this run with this eventType arrived.';
comment on table deliveries is 'Webhooks that contained only a signed link, from which Everyrun then fetched the payload.';
create index deliveries_chunk on deliveries (chunk, attempt);

create table quarantine (
    source text collate "C" primary key,
    topic text not null,
    partition int,
    "offset" bigint,
    reason text not null,
    raw bytea not null,
    headers jsonb not null,
    key bytea,
    state text not null default 'OPEN',
    first_seen timestamptz not null,
    decided_at timestamptz
);
comment on column quarantine.source is
    'Id of the message. For a webhook: webhook/HASH, where HASH is the SHA-256 hash of the body in hexadecimal. For a Kafka record: TOPIC/PARTITION/OFFSET.';
comment on column quarantine.topic is 'The topic from which the message was read. For a webhook: webhook.';
comment on column quarantine.partition is 'The partition from which the message was read. Null for a webhook.';
comment on column quarantine."offset" is 'The offset of the message in the partition. Null for a webhook.';
comment on column quarantine.reason is 'Why Everyrun could not read or store the message.';
comment on column quarantine.raw is 'The value of the record, or the body of the webhook, as the original bytes.';
comment on column quarantine.headers is 'The headers of the message: a list of pairs [name, value].';
comment on column quarantine.key is 'The key of the Kafka record. Null if there is none.';
comment on column quarantine.first_seen is 'When the message was quarantined.';
comment on column quarantine.decided_at is 'When the message was last retried or discarded. Null if it never was.';
comment on table quarantine is 'Messages that Everyrun could not read or store, as they were received. Rows are never deleted.';
comment on column quarantine.state is
    'OPEN; RETRIED (a retry could read the message, and published it to its topic); DISCARDED (a person decided that nothing needs to be done about it).';
create index quarantine_open on quarantine (source) where state = 'OPEN';

create table decisions (
    event_id text collate "C" primary key,
    kind text not null,
    workflow_id text collate "C",
    submission_id text collate "C",
    chunk text collate "C",
    attempt int,
    batch_id text collate "C",
    source text collate "C",
    decided_by text,
    reason text not null,
    decided_at timestamptz not null
);
comment on column decisions.event_id is 'Id of the event that records the decision.';
comment on column decisions.kind is
    'Type of the event, for example doubt-resent, doubt-adopted, doubt-discarded, workflow-paused, cancellation-requested or token-revoked.';
comment on column decisions.workflow_id is 'The workflow that was paused or resumed. For a chunk: the workflow to which it is sent.';
comment on column decisions.submission_id is 'The submission that was paused, resumed or cancelled. For a chunk: its submission.';
comment on column decisions.chunk is 'The chunk that was in doubt.';
comment on column decisions.attempt is 'The attempt that was in doubt.';
comment on column decisions.batch_id is 'If an attempt was adopted, or a batch was cancelled: the batch at Extend that the person named.';
comment on column decisions.source is 'The quarantined message (quarantine.source), or the id of the cancellation, token or receiver.';
comment on column decisions.decided_by is 'Who decided. Null if Everyrun decided by its own rules.';
comment on column decisions.reason is 'Why it was decided.';
comment on column decisions.decided_at is 'When it was decided.';
comment on table decisions is
    'Decisions about attempts in doubt, workflows, submissions, cancellations, quarantined messages and API tokens: what was decided, by whom, why and when.';
create index decisions_chunk on decisions (chunk, attempt);
create index decisions_source on decisions (source);

create view submission_counts as
with chunks as (
    -- One row per chunk, with what its attempts tell about inputs that have no row in results.
    select submission_id, chunk, max(expected) as expected,
           bool_or(state in ('SUBMITTED', 'SETTLED', 'REFUSED', 'CANCELLED')) as has_rows,
           bool_or(state = 'CUT') as cut,
           bool_or(state = 'IN_DOUBT') as in_doubt,
           bool_or(state = 'SENDING') as sending
    from batches
    group by submission_id, chunk
),
-- Used twice. Postgres would otherwise compute it for all submissions, even if a query asks for one.
counted as not materialized (
    select b.submission_id, c.key as status, sum(c.value::bigint) as inputs
    from batches b, jsonb_each_text(b.counts) c
    group by b.submission_id, c.key
    union all
    select submission_id, case when in_doubt then 'IN_DOUBT' else 'SENDING' end, sum(expected)
    from chunks
    -- The inputs of a cut chunk are counted as inputs of its parts.
    where not has_rows and not cut and (in_doubt or sending)
    group by 1, 2
),
known as (
    select submission_id, sum(inputs) as inputs from counted group by submission_id
)
select submission_id, status, inputs::bigint from counted
union all
select s.submission_id, 'WAITING', s.expected - coalesce(k.inputs, 0)::bigint
from submissions s left join known k using (submission_id)
where s.expected <> coalesce(k.inputs, 0);
comment on view submission_counts is 'Number of inputs of each submission, by status. The numbers come from the counters in batches, not from counting rows.';
comment on column submission_counts.submission_id is 'The submission.';
comment on column submission_counts.status is
    'A status from results. For inputs that have no row in results: WAITING, SENDING or IN_DOUBT.';
comment on column submission_counts.inputs is 'Number of inputs with this status.';

create view report as
select
    b.submission_id, b.chunk, b.attempt, b.batch_id, b.state, b.expected,
    coalesce((select sum(value::bigint) from jsonb_each_text(b.counts)), 0) as inputs,
    coalesce((select sum(value::bigint) from jsonb_each_text(b.counts)
              where key in ('PROCESSED', 'FAILED', 'CANCELLED', 'REJECTED', 'REFUSED')), 0) as settled,
    b.counts, b.runs_observed, b.duplicates, b.superseded,
    (select count(*) from unmatched_runs u where u.batch_id = b.batch_id) as unmatched,
    coalesce(r.runs, 0) as runs_in_results,
    coalesce(d.duplicates, 0) as runs_in_duplicates,
    coalesce(d.superseded, 0) as runs_in_superseded,
    coalesce(r.counts, '{}') as counted_rows,
    b.counts = coalesce(r.counts, '{}')
        and b.runs_observed = coalesce(r.runs, 0) + coalesce(d.duplicates, 0) + coalesce(d.superseded, 0)
        and b.duplicates = coalesce(d.duplicates, 0) and b.superseded = coalesce(d.superseded, 0) as balanced
from batches b
left join lateral (
    select sum(n) filter (where has_run) as runs, jsonb_object_agg(status, total) as counts
    from (
        select status, run_id is not null as has_run, count(*) as n,
               sum(count(*)) over (partition by status) as total
        from results
        where input_id = any (b.input_ids) and results.chunk = b.chunk and results.attempt = b.attempt
          and status <> 'WAITING'
        group by 1, 2
    ) per_status
) r on true
left join lateral (
    select count(*) filter (where not superseded) as duplicates, count(*) filter (where superseded) as superseded
    from other_runs d
    where d.batch_id = b.batch_id
) d on true;
comment on view report is 'One row per attempt. Compares the counters that batches has with the numbers of rows in the tables.';
comment on column report.submission_id is 'The submission that the chunk belongs to.';
comment on column report.chunk is 'Id of the chunk.';
comment on column report.attempt is 'Number of the attempt (call to Extend) that sent the chunk.';
comment on column report.batch_id is 'Extend''s batchId. Null until it is known.';
comment on column report.state is 'The state of the attempt, as in batches.';
comment on column report.expected is 'Number of inputs in the attempt.';
comment on column report.inputs is 'Counter: inputs whose row in results names this attempt.';
comment on column report.settled is 'Counter: inputs whose row in results names this attempt, and that are settled.';
comment on column report.counts is 'Counter: inputs whose row in results names this attempt, by status.';
comment on column report.runs_observed is 'Counter: runs of the batch that were matched to an input.';
comment on column report.duplicates is 'Counter: runs of the batch in other_runs that are not superseded.';
comment on column report.superseded is 'Counter: runs of the batch in other_runs that are superseded, because their input has a newer try.';
comment on column report.unmatched is 'Counted now: rows of unmatched_runs with this batch.';
comment on column report.runs_in_results is 'Counted now: rows of results that name this attempt and have a run.';
comment on column report.runs_in_duplicates is 'Counted now: rows of other_runs with this batch that are not superseded.';
comment on column report.runs_in_superseded is 'Counted now: rows of other_runs with this batch that are superseded.';
comment on column report.counted_rows is 'Counted now: rows of results that name this attempt, by status.';
comment on column report.balanced is 'True if the counters equal the numbers that were counted now.';

create view extractions as
select r.input_id, r.external_id, r.submission_id, r.status,
       step -> 'step' ->> 'name' as step_name,
       step -> 'result' -> 'extractRun' -> 'output' -> 'value' as value
from results r,
     jsonb_array_elements(case jsonb_typeof(r.run -> 'stepRuns') when 'array' then r.run -> 'stepRuns' end) step
where step -> 'result' -> 'extractRun' -> 'output' is not null;
comment on column extractions.input_id is 'Id of the input. To select all inputs of a submission, use a range, as in results.';
comment on view extractions is 'The extracted values: one row per input and extraction step of its current run.';
comment on column extractions.external_id is 'The id that the caller gave to the input. If the caller gave none, the position as text.';
comment on column extractions.submission_id is 'The submission. To select one, use a range of input_id, which has an index.';
comment on column extractions.status is
    'The input''s status. Use the values only if it is PROCESSED. Otherwise the run failed, or is not finished, or a person must still review the values.';
comment on column extractions.step_name is 'The name of the step in the workflow.';
comment on column extractions.value is
    'The extracted values. In results, they are in the column run, at stepRuns -> N -> result -> extractRun -> output -> value.';

create view flat_results as
select r.input_id, r.external_id, r.submission_id, s.workflow_id, s.workflow_version, r.batch_id, r.position,
       r.file ->> 'name' as file_name, coalesce(r.file ->> 'url', r.file ->> 'object') as file_url, r.file ->> 'id' as file_id, r.metadata,
       r.status, r.status in ('PROCESSED', 'FAILED', 'CANCELLED', 'REJECTED', 'REFUSED') as settled,
       r.failure_reason, r.failure_message, r.run_id,
       coalesce(substring(r.chunk from '-r([1-9][0-9]{0,3})(?:-|$)')::int, 0) as retry, r.credits, r.source,
       s.created_at as accepted_at, b.submitted_at, r.observed_at, r.settled_at,
       extract(epoch from r.settled_at - b.submitted_at)::double precision as latency_seconds,
       r.version
from results r
left join submissions s on s.submission_id = r.submission_id
left join batches b on b.chunk = r.chunk and b.attempt = r.attempt;
comment on view flat_results is 'One row per input of results, with the columns that people analyse. It has no joins to make and no JSON to take apart, except metadata. everyrun export writes these columns. Columns may be added at the end.';
comment on column flat_results.input_id is 'Id of the input. To select all inputs of a submission, use a range, as in results.';
comment on column flat_results.external_id is 'The id that the caller gave to the input. If the caller gave none, the position as text.';
comment on column flat_results.submission_id is 'The submission. To select one, use a range of input_id, which has an index.';
comment on column flat_results.workflow_id is 'Extend''s id of the workflow.';
comment on column flat_results.workflow_version is 'The requested version of the workflow. Null if none was requested.';
comment on column flat_results.batch_id is 'Extend''s batchId. Null if the input was refused.';
comment on column flat_results.position is 'Position of the input in its submission. The first input is 1.';
comment on column flat_results.file_name is 'The name of the file. Null if none was given.';
comment on column flat_results.file_url is 'The URL of the file, without its query string, or the address of an object in a bucket (s3://BUCKET/KEY). Null if the file was given otherwise.';
comment on column flat_results.file_id is 'Extend''s id of an uploaded file. Null if the file was given otherwise.';
comment on column flat_results.metadata is 'The metadata as it was submitted. Take a field as text with metadata ->> ''field''.';
comment on column flat_results.status is 'The status, as in results.';
comment on column flat_results.settled is 'True if the status is PROCESSED, FAILED, CANCELLED, REJECTED or REFUSED.';
comment on column flat_results.failure_reason is
    'If the run failed, Extend''s failureReason. If the input was refused, Extend''s error code, or DISCARDED if a person discarded it.';
comment on column flat_results.failure_message is 'The message that explains failure_reason.';
comment on column flat_results.run_id is 'Id of the current run. Null if no run is known yet.';
comment on column flat_results.retry is 'Number of the retry of the submission that made the current try of the input. 0 for the first try.';
comment on column flat_results.credits is 'Credits that the current run used. Null if unknown.';
comment on column flat_results.source is 'How Everyrun learned of the current run''s state: webhook or poll.';
comment on column flat_results.accepted_at is 'When Everyrun accepted the submission.';
comment on column flat_results.submitted_at is 'When Extend accepted the batch of the current run. Null if it accepted none.';
comment on column flat_results.observed_at is 'When Everyrun learned of the input''s state.';
comment on column flat_results.settled_at is 'When the input settled. Null until then.';
comment on column flat_results.latency_seconds is 'Seconds from submitted_at to settled_at. Null if one of them is.';
comment on column flat_results.version is 'Version of the row''s state, as in results. Of two states of the row, the newer one has the greater version.';

-- migrate:down
do $$
begin
    execute format('drop schema %I cascade', current_schema());
end $$;
