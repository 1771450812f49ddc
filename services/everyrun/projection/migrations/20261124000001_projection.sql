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
comment on column applied_offsets.partition is 'The partition.';
comment on column applied_offsets.next_offset is 'Offset of the first record that is not applied yet.';
comment on column applied_offsets.cluster_id is
    'Id of the Kafka cluster that the tables come from. The processor refuses another one.';
comment on column applied_offsets.partitions is
    'Number of partitions of the topics batches and runs when these tables were created. The processor refuses a log with another number, because a key would choose another partition.';
comment on table applied_offsets is 'How far each partition is applied to these tables; advanced in the same transaction.';

create table submissions (
    submission_id text collate "C" primary key,
    workflow_id text not null,
    workflow_version text,
    priority smallint,
    expected bigint not null,
    created_at timestamptz not null
);
comment on table submissions is 'One row per accepted submission, and per registered batch.';
comment on column submissions.submission_id is
    'The id that everyrun submit prints: sub_ and 26 characters that sort by time.';
comment on column submissions.workflow_id is 'The workflow at Extend.';
comment on column submissions.workflow_version is 'The requested version; null for the newest published one.';
comment on column submissions.expected is 'Number of inputs in the submission.';
comment on column submissions.created_at is 'When the submission was accepted, or the batch registered.';

comment on column submissions.priority is 'Extend''s priority, 1 to 100, lower first; null for a registered batch.';

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
    submitted_at timestamptz,
    settled_at timestamptz,
    counts jsonb not null default '{}',
    runs_observed int not null default 0,
    duplicates int not null default 0,
    input_ids text[] not null,
    fingerprints text[],
    primary key (chunk, attempt)
);
comment on column batches.chunk is
    'The chunk: inputs that are sent to Extend in one call. If a chunk is cut, its parts are named CHUNK-1, CHUNK-2, ....';
comment on column batches.attempt is 'Number of the attempt to send the chunk, from 1.';
comment on column batches.batch_id is 'Extend''s batchId, once it is known.';
comment on column batches.submission_id is 'The submission that the chunk belongs to.';
comment on column batches.workflow_id is 'The workflow that the chunk was sent to.';
comment on column batches.workflow_version is 'The requested version; null for the newest published one.';
comment on column batches.priority is 'Extend''s priority, 1 to 100, lower first; null for a registered batch.';
comment on column batches.expected is 'Number of inputs in the attempt.';
comment on column batches.reason is
    'Why the attempt is in this state: the error or the decision. Null if it was simply sent.';
comment on column batches.requested_at is 'When the call was about to begin.';
comment on column batches.returned_at is 'When it was clear that Extend did not accept the attempt for now.';
comment on column batches.in_doubt_at is 'When the outcome of the call became unknown.';
comment on column batches.resent_at is 'When the attempt was given up, so that the chunk is sent in another one.';
comment on column batches.rejected_at is 'When Extend refused the attempt, or a person discarded it.';
comment on column batches.cut_at is 'When Extend refused the attempt because of some inputs, and the chunk was cut into parts.';
comment on column batches.submitted_at is 'When Extend accepted the attempt.';
comment on column batches.settled_at is 'When its last input settled.';
comment on column batches.duplicates is 'Number of runs of the batch in duplicate_runs.';
comment on table batches is 'One row per attempt to send a chunk of inputs to Extend.';
comment on column batches.state is
    'SENDING, RETURNED (not accepted for now), IN_DOUBT, RESENT (given up after the window), REFUSED (by Extend, or discarded by a person), CUT (refused because of some inputs; sent again in the parts CHUNK-1, CHUNK-2, ...), SUBMITTED (accepted), SETTLED (accepted, every input is settled, and all runs were seen).';
comment on column batches.counts is 'Number of inputs that count in this attempt, by status. An input counts in the attempt of its current run.';
comment on column batches.runs_observed is 'Number of runs of this batch that were matched to an input.';
comment on column batches.input_ids is 'The inputs, in the order in which they were sent.';
comment on column batches.fingerprints is
    'For a registered batch: SHA-256 of the metadata of each of input_ids, as RFC 8785 JSON. Otherwise null.';
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
comment on column results.external_id is 'The caller''s own id, or the position as text.';
comment on column results.batch_id is
    'Extend''s batchId of the attempt that the row counts in; null if the input was refused.';
comment on column results.position is 'Position of the input in its submission, from 1.';
comment on column results.chunk is 'The chunk of the attempt that the row counts in.';
comment on column results.attempt is 'The attempt that the row counts in.';
comment on column results.file is 'The file as submitted, without the query string of a URL and without a password.';
comment on column results.run_id is 'The current run: the one whose state the row shows. Null if no run is known yet.';
comment on column results.status is
    'SUBMITTED (no run is known yet), REFUSED, or Extend''s status of the current run: PENDING, PROCESSING, CANCELLING, NEEDS_REVIEW, PROCESSED, FAILED, CANCELLED, REJECTED.';
comment on column results.failure_reason is
    'Extend''s failureReason of a failed run; for a refused input, the error code or DISCARDED.';
comment on column results.failure_message is 'The message for failure_reason.';
comment on column results.credits is 'Extend''s usage.credits of the current run; null if unknown.';
comment on column results.source is 'How Everyrun learned of this state: webhook or poll. Null without a run.';
comment on column results.observed_at is 'When Everyrun learned of this state; without a run, the time of the attempt''s event.';
comment on column results.settled_at is 'When the input settled; null while it is open.';
comment on table results is 'One row per input that was sent or refused. An ordinary table, without triggers or generated columns.';
comment on column results.input_id is
    'submission_id, : and external_id. The inputs of a submission are the range input_id >= ''ID:'' and input_id < ''ID;'' of the primary key.';
comment on column results.submission_id is
    'Indexed only for the rows in results_not_processed. For all inputs of a submission, query the range of input_id.';
comment on column results.metadata is 'The metadata as submitted. What Extend returned is in run.';
comment on column results.run is 'The complete WorkflowRun of the current run, as Extend returned it, without Everyrun''s reserved metadata key.';
comment on column results.version is 'Text that sorts: of two states of a row, the one with the greater version is newer.';
create index results_run on results (run_id);
-- Holds few rows: the ones that people list.
create index results_not_processed on results (submission_id, status, input_id)
    where status not in ('PROCESSED', 'SUBMITTED', 'PENDING', 'PROCESSING');

create table duplicate_runs (
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
    version text collate "C" not null
);
comment on column duplicate_runs.run_id is 'Extend''s id of the run.';
comment on column duplicate_runs.input_id is 'The input that the run belongs to.';
comment on column duplicate_runs.batch_id is 'The batch that the run belongs to.';
comment on column duplicate_runs.chunk is 'The chunk of the attempt that became the batch.';
comment on column duplicate_runs.attempt is 'The number of that attempt.';
comment on column duplicate_runs.status is 'Extend''s status of the run.';
comment on column duplicate_runs.failure_reason is 'Extend''s failureReason of a failed run.';
comment on column duplicate_runs.failure_message is 'The message for failure_reason.';
comment on column duplicate_runs.run is
    'The complete WorkflowRun, as Extend returned it, without Everyrun''s reserved metadata key.';
comment on column duplicate_runs.credits is 'Extend''s usage.credits of the run; null if unknown.';
comment on column duplicate_runs.source is 'How Everyrun learned of this state: webhook or poll.';
comment on column duplicate_runs.observed_at is 'When Everyrun learned of this state.';
comment on column duplicate_runs.settled_at is 'When the run ended; null while it is open.';
comment on column duplicate_runs.version is 'Text that sorts, as in results.';
comment on table duplicate_runs is 'Duplicate runs: runs of inputs that have another current run in results.';
create index duplicate_runs_input on duplicate_runs (input_id);
create index duplicate_runs_batch on duplicate_runs (batch_id);

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
comment on column unmatched_runs.batch_id is 'The batch that the run names; null if it names none.';
comment on column unmatched_runs.metadata is 'The run''s metadata as Extend returned it, without Everyrun''s reserved key.';
comment on column unmatched_runs.status is 'Extend''s status of the run.';
comment on column unmatched_runs.first_seen is 'When the run was first observed.';
comment on column unmatched_runs.input_id is 'The input that the reserved metadata key names; null without such a key.';
comment on column unmatched_runs.installation is 'The installation of Everyrun that the reserved key names.';
comment on column unmatched_runs.chunk is 'The chunk that the reserved key names.';
comment on column unmatched_runs.attempt is 'The attempt that the reserved key names.';
comment on column unmatched_runs.failure_reason is 'Extend''s failureReason of a failed run.';
comment on column unmatched_runs.failure_message is 'The message for failure_reason.';
comment on column unmatched_runs.credits is 'Extend''s usage.credits of the run; null if unknown.';
comment on column unmatched_runs.source is 'How Everyrun learned of this state: webhook or poll.';
comment on column unmatched_runs.observed_at is 'When Everyrun learned of this state.';
comment on column unmatched_runs.settled_at is 'When the run ended; null while it is open.';
comment on column unmatched_runs.version is 'Text that sorts, as in results.';
comment on table unmatched_runs is 'Runs that match no input so far.';
comment on column unmatched_runs.reason is
    'batch_unknown, no_batch; for a batch that Everyrun sent: no_reserved_key, reserved_key_of_another_batch, input_unknown; for a registered batch: ambiguous_metadata, metadata_unknown.';
comment on column unmatched_runs.run is
    'The complete WorkflowRun. For a foreign run, only its head remains after EVERYRUN_FOREIGN_RUNS_KEPT (version then ends in ~).';
comment on column unmatched_runs.fingerprints is
    'SHA-256 of each metadata that the run was seen with, as RFC 8785 JSON, in the order of the log.';
comment on column unmatched_runs.bindings is
    'Each reserved key that the run was seen with, sorted by chunk and attempt; those of one attempt are in the order of the log. The columns input_id, installation, chunk and attempt show the smallest.';
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
comment on column deliveries.event_type is 'Extend''s eventType.';
comment on column deliveries.chunk is
    'The chunk that the reserved key in the webhook''s metadata names; null without a key.';
comment on column deliveries.attempt is 'The attempt that the reserved key names.';
comment on column deliveries.input_id is 'The input that the reserved key names.';
comment on column deliveries.first_seen is 'When the first such webhook arrived.';
comment on table deliveries is 'Webhooks whose payload had to be fetched from a signed link.';
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
    'Where the message came from: webhook/SHA-256 of the body, or TOPIC/PARTITION/OFFSET.';
comment on column quarantine.topic is 'The topic that it was read from, or ''webhook''.';
comment on column quarantine.partition is 'The partition that it was read from; null for a webhook.';
comment on column quarantine."offset" is 'Its offset there; null for a webhook.';
comment on column quarantine.reason is 'Why it could not be understood or stored.';
comment on column quarantine.raw is 'The message, byte for byte.';
comment on column quarantine.headers is 'Its headers, as a list of name and value.';
comment on column quarantine.key is 'Its key in the topic that it was read from.';
comment on column quarantine.first_seen is 'When it was quarantined.';
comment on column quarantine.decided_at is 'When it was last retried or discarded; null before that.';
comment on table quarantine is 'Messages that could not be understood or stored, as they were received. None is ever deleted.';
comment on column quarantine.state is
    'OPEN, RETRIED (understood later, and published where it belongs), DISCARDED (a person decided that it needs no more work).';
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
comment on column decisions.event_id is 'Id of the event that holds the decision.';
comment on column decisions.kind is
    'The type of that event: doubt-resent, doubt-adopted, doubt-discarded, workflow-paused, token-revoked, ....';
comment on column decisions.workflow_id is 'The workflow that was paused or resumed, or that the chunk is for.';
comment on column decisions.submission_id is 'The submission that was paused or resumed, or that the chunk belongs to.';
comment on column decisions.chunk is 'The chunk that was in doubt.';
comment on column decisions.attempt is 'The attempt that was in doubt.';
comment on column decisions.batch_id is 'The batch that a person named for an adopted attempt.';
comment on column decisions.source is 'The source of the quarantined message, or the id of the token.';
comment on column decisions.decided_by is 'Who decided; null if Everyrun did, by its own rules.';
comment on column decisions.reason is 'Why it was decided.';
comment on column decisions.decided_at is 'When it was decided.';
comment on table decisions is
    'Decisions about attempts in doubt, workflows, submissions, quarantined messages and API tokens: what was decided, by whom, why and when.';
create index decisions_chunk on decisions (chunk, attempt);
create index decisions_source on decisions (source);

create view submission_counts as
with chunks as (
    -- One row per chunk, with what its attempts tell about inputs that have no row in results.
    select submission_id, chunk, max(expected) as expected,
           bool_or(state in ('SUBMITTED', 'SETTLED', 'REFUSED')) as has_rows,
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
    -- The inputs of a cut chunk count in its parts.
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
comment on view submission_counts is 'Number of inputs of a submission with each status, according to the counters in batches.';
comment on column submission_counts.submission_id is 'The submission.';
comment on column submission_counts.status is
    'A status as in results; or WAITING, SENDING or IN_DOUBT for inputs without a row there.';
comment on column submission_counts.inputs is 'Number of inputs with this status.';

create view report as
select
    b.submission_id, b.chunk, b.attempt, b.batch_id, b.state, b.expected,
    coalesce((select sum(value::bigint) from jsonb_each_text(b.counts)), 0) as inputs,
    coalesce((select sum(value::bigint) from jsonb_each_text(b.counts)
              where key in ('PROCESSED', 'FAILED', 'CANCELLED', 'REJECTED', 'REFUSED')), 0) as settled,
    b.counts, b.runs_observed, b.duplicates,
    (select count(*) from unmatched_runs u where u.batch_id = b.batch_id) as unmatched,
    coalesce(r.runs, 0) as runs_in_results,
    coalesce(d.runs, 0) as runs_in_duplicates,
    coalesce(r.counts, '{}') as counted_rows,
    b.counts = coalesce(r.counts, '{}')
        and b.runs_observed = coalesce(r.runs, 0) + coalesce(d.runs, 0)
        and b.duplicates = coalesce(d.runs, 0) as balanced
from batches b
left join lateral (
    select sum(n) filter (where has_run) as runs, jsonb_object_agg(status, total) as counts
    from (
        select status, run_id is not null as has_run, count(*) as n,
               sum(count(*)) over (partition by status) as total
        from results
        where input_id = any (b.input_ids) and results.chunk = b.chunk and results.attempt = b.attempt
        group by 1, 2
    ) per_status
) r on true
left join lateral (
    select count(*) as runs from duplicate_runs d
    where d.batch_id = b.batch_id
) d on true;
comment on view report is 'One row per attempt: its counters beside a count of the rows. It is balanced if both agree.';
comment on column report.submission_id is 'The submission that the chunk belongs to.';
comment on column report.chunk is 'The chunk.';
comment on column report.attempt is 'The attempt to send it.';
comment on column report.batch_id is 'Extend''s batchId, once it is known.';
comment on column report.state is 'The state of the attempt, as in batches.';
comment on column report.expected is 'Number of inputs in the attempt.';
comment on column report.inputs is 'Counter: inputs that count in this attempt.';
comment on column report.settled is 'Counter: those of them that are settled.';
comment on column report.counts is 'Counter: inputs that count in this attempt, by status.';
comment on column report.runs_observed is 'Counter: runs of the batch that were matched to an input.';
comment on column report.duplicates is 'Counter: runs of the batch in duplicate_runs.';
comment on column report.unmatched is 'Counted now: runs of the batch in unmatched_runs.';
comment on column report.runs_in_results is 'Counted now: rows of results that count in this attempt and have a run.';
comment on column report.runs_in_duplicates is 'Counted now: rows of duplicate_runs.';
comment on column report.counted_rows is 'Counted now: rows of results that count in this attempt, by status.';
comment on column report.balanced is 'True if the counters agree with the counted rows.';

create view extractions as
select r.input_id, r.external_id, r.submission_id, r.status,
       step -> 'step' ->> 'name' as step_name,
       step -> 'result' -> 'extractRun' -> 'output' -> 'value' as value
from results r, jsonb_array_elements(r.run -> 'stepRuns') step
where step -> 'result' -> 'extractRun' -> 'output' is not null;
comment on column extractions.input_id is 'The input. The inputs of a submission are a range, as in results.';
comment on view extractions is 'The value that each extraction step of an input''s current run extracted.';
comment on column extractions.external_id is 'The caller''s own id, or the position as text.';
comment on column extractions.submission_id is 'The submission. To select one, query the range of input_id, which has an index.';
comment on column extractions.status is
    'The input''s status. Values of an input that is not PROCESSED are provisional: nobody has approved them, or its run failed.';
comment on column extractions.step_name is 'The name of the step in the workflow.';
comment on column extractions.value is
    'The extracted values, from run -> stepRuns -> result -> extractRun -> output -> value.';

-- migrate:down
do $$
begin
    execute format('drop schema %I cascade', current_schema());
end $$;
