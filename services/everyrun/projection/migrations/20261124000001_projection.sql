-- migrate:up
-- No name of a schema here: a rebuild makes the same tables beside the live ones, under another name.
do $$
begin
    execute format('comment on schema %I is %L', current_schema(),
        'A projection of the Kafka topics: drop it, and it is rebuilt row for row. Nothing here is written by anyone but the processor.');
end $$;

create table applied_offsets (
    topic text collate "C" not null,
    partition int not null,
    next_offset bigint not null,
    cluster_id text not null,
    partitions int not null,
    primary key (topic, partition)
);
comment on column applied_offsets.partitions is
    'How many partitions the topics batches and runs had when these tables were begun. Tables are refused a log that has another number: a key would mean another partition.';
comment on table applied_offsets is 'How far each partition has been applied to these tables; moved in the same transaction as they are.';

create table submissions (
    submission_id text collate "C" primary key,
    workflow_id text not null,
    workflow_version text,
    priority smallint,
    expected bigint not null,
    created_at timestamptz not null
);

comment on column submissions.priority is 'Null of a batch that was submitted elsewhere and registered here.';

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
comment on table batches is 'One row per attempt at sending a chunk of inputs to Extend.';
comment on column batches.state is
    'SENDING, RETURNED (not taken, for now), IN_DOUBT, RESENT (given up after the window), REFUSED (by Extend, or discarded by a person), CUT (refused by Extend because of some of its inputs, which are sent in the parts CHUNK-1, CHUNK-2, ...), SUBMITTED, SETTLED (submitted, every input of it is settled, and all its runs were seen).';
comment on column batches.counts is 'Inputs whose standing run or attempt is here, by status.';
comment on column batches.runs_observed is 'Distinct runs seen of this batch and matched to an input.';
comment on column batches.input_ids is 'The inputs in the order they were sent.';
comment on column batches.fingerprints is
    'Of a batch that was registered here: SHA-256 of the metadata of each of input_ids, as RFC 8785 JSON. Else null.';
create index batches_submission on batches (submission_id, chunk);
create index batches_open on batches (submitted_at) where state = 'SUBMITTED';
create index batches_open_of on batches (submission_id) where state = 'SUBMITTED';
-- Which workflows there are, and since when each has had batches.
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
comment on table results is 'One row per input that was sent or refused; an ordinary table, without triggers or generated columns.';
comment on column results.input_id is
    'submission_id, : and external_id. A submission is the range input_id >= ''ID:'' and input_id < ''ID;'' of the primary key.';
comment on column results.submission_id is 'Without an index of its own: ask for the range of input_id.';
comment on column results.metadata is 'As handed in. As it came back from Extend it is in run.';
comment on column results.run is 'The whole WorkflowRun of the standing run, as Extend gave it, without Everyrun''s reserved metadata key.';
comment on column results.version is 'Sortable text: of two states of a row the one with the greater version is the newer.';
create index results_run on results (run_id);
-- Few rows are in it, and they are the ones people list.
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
comment on table duplicate_runs is 'Further runs of an input that has a standing one in results.';
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
comment on table unmatched_runs is 'Runs that no input is known for, yet.';
comment on column unmatched_runs.reason is
    'batch_unknown, no_batch; of a batch sent by Everyrun: no_reserved_key, reserved_key_of_another_batch, input_unknown; of a registered one: ambiguous_metadata, metadata_unknown.';
comment on column unmatched_runs.run is
    'The whole WorkflowRun; of a run that is not ours only the head once EVERYRUN_FOREIGN_RUNS_KEPT is over (version then ends in ~).';
comment on column unmatched_runs.fingerprints is
    'SHA-256 of each metadata the run was seen with, as RFC 8785 JSON, in the order of the log.';
comment on column unmatched_runs.bindings is
    'Each reserved key the run was seen with, by chunk and attempt; those of one attempt in the order of the log. input_id, installation, chunk and attempt are of the least.';
create index unmatched_runs_batch on unmatched_runs (batch_id);
create index unmatched_runs_whole on unmatched_runs (first_seen) where right(version, 1) <> '~';
create index unmatched_runs_chunk on unmatched_runs (chunk, attempt);
-- Evidence for attempts of unknown outcome, looked for every second: few rows, however many runs of others are unmatched.
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
comment on table deliveries is 'Webhooks whose payload was behind a signed link.';
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
comment on table quarantine is 'Messages that could not be understood, as they were received. None is ever deleted.';
comment on column quarantine.state is
    'OPEN, RETRIED (understood since, and published where it belongs), DISCARDED (a person wants nothing done about it).';
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
comment on table decisions is
    'What was decided of calls of unknown outcome, workflows, submissions, quarantined messages and API tokens: who, why and when. source is the message''s source, or the token''s id. decided_by is null where Everyrun decided by its own rules.';
create index decisions_chunk on decisions (chunk, attempt);
create index decisions_source on decisions (source);

create view submission_counts as
with chunks as (
    -- Of the attempts at a chunk none of which became rows of results, the most telling one.
    select submission_id, chunk, max(expected) as expected,
           bool_or(state in ('SUBMITTED', 'SETTLED', 'REFUSED')) as has_rows,
           bool_or(state = 'CUT') as cut,
           bool_or(state = 'IN_DOUBT') as in_doubt,
           bool_or(state = 'SENDING') as sending
    from batches
    group by submission_id, chunk
),
-- Used twice, so Postgres would make it of all submissions before it looks at the one that is asked for.
counted as not materialized (
    select b.submission_id, c.key as status, sum(c.value::bigint) as inputs
    from batches b, jsonb_each_text(b.counts) c
    group by b.submission_id, c.key
    union all
    select submission_id, case when in_doubt then 'IN_DOUBT' else 'SENDING' end, sum(expected)
    from chunks
    -- The inputs of a chunk that was cut are counted in its parts.
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
comment on view submission_counts is 'How many inputs of a submission have each status, by the kept counters.';

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
comment on view report is 'One line an attempt: the kept counters beside a count of the rows; balanced where they agree.';

create view extractions as
select r.input_id, r.external_id, r.submission_id,
       step -> 'step' ->> 'name' as step_name,
       step -> 'result' -> 'extractRun' -> 'output' -> 'value' as value
from results r, jsonb_array_elements(r.run -> 'stepRuns') step
where step -> 'result' -> 'extractRun' -> 'output' is not null;
comment on column extractions.input_id is 'A submission is a range of it, as in results.';
comment on view extractions is 'The extracted value of each extracting step of each input''s standing run.';

-- migrate:down
do $$
begin
    execute format('drop schema %I cascade', current_schema());
end $$;
