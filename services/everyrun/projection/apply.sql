-- name: insert_partitions
insert into applied_offsets (topic, partition, next_offset, cluster_id, partitions)
select t, p, 0, $3, $4 from unnest($1::text[], $2::int[]) as given (t, p)
on conflict do nothing

-- name: lock_offsets
select topic, partition, next_offset, cluster_id, partitions
from applied_offsets
where (topic, partition) in (select t, p from unnest($1::text[], $2::int[]) as given (t, p))
order by topic, partition
for update

-- name: all_offsets
select topic, partition, next_offset, cluster_id, partitions from applied_offsets

-- name: advance_offsets
update applied_offsets o set next_offset = given.next
from unnest($1::text[], $2::int[], $3::bigint[]) as given (t, p, next)
where o.topic = given.t and o.partition = given.p

-- name: batches_by_id
select batch_id, chunk, attempt, fingerprints is not null as registered from batches where batch_id = any ($1::text[])

-- name: inputs_by_fingerprint
select b.batch_id, given.fingerprint, given.input_id
from batches b, unnest(b.fingerprints, b.input_ids) as given (fingerprint, input_id)
where b.batch_id = any ($1::text[]) and given.fingerprint = any ($2::text[])

-- name: rows_by_input
select input_id, external_id, submission_id, position, chunk, attempt, batch_id, run_id, status, version,
       observed_at, file, metadata
from results where input_id = any ($1::text[])

-- name: members
select b.batch_id, given.input_id
from unnest($1::text[], $2::text[]) as given (batch_id, input_id)
join batches b using (batch_id)
where given.input_id = any (b.input_ids)

-- name: share_tables
select pg_advisory_xact_lock_shared(hashtext('everyrun.apply'), hashtext(current_schema()))

-- name: lock_tables
select pg_advisory_xact_lock(hashtext('everyrun.apply'), hashtext(current_schema()))

-- name: attempts_by_run
select run_id, input_id, chunk, attempt, batch_id from results where run_id = any ($1::text[])
union all
select run_id, input_id, chunk, attempt, batch_id from other_runs where run_id = any ($1::text[])

-- name: current_runs
select run_id, input_id, batch_id, chunk, attempt, status, failure_reason, failure_message, run, credits, source,
       observed_at, settled_at, version
from results where input_id = any ($1::text[]) and run_id is not null

-- name: other_runs_of
select run_id, input_id, batch_id, chunk, attempt, status, failure_reason, failure_message, run, credits, source,
       observed_at, settled_at, version, superseded
from other_runs where input_id = any ($1::text[])

-- name: unmatched
select run_id, batch_id, metadata, status, first_seen, input_id, installation, chunk, attempt, run, source,
       observed_at, settled_at, failure_reason, failure_message, credits, version, fingerprints, bindings
from unmatched_runs where run_id = any ($1::text[]) or batch_id = any ($2::text[])

-- name: create_staging
create temporary table if not exists staged_results (
    input_id text collate "C", expected_version text collate "C", batch_id text, chunk text, attempt int, run_id text,
    status text, failure_reason text, failure_message text, run jsonb, credits double precision, source text,
    observed_at timestamptz, settled_at timestamptz, version text
) with (toast_tuple_target = 8160) on commit delete rows

-- name: update_results
update results r
set batch_id = s.batch_id, chunk = s.chunk, attempt = s.attempt, run_id = s.run_id, status = s.status,
    failure_reason = s.failure_reason, failure_message = s.failure_message, run = s.run, credits = s.credits,
    source = s.source, observed_at = s.observed_at, settled_at = s.settled_at, version = s.version
from staged_results s
where r.input_id = s.input_id and r.version = s.expected_version

-- name: delete_other_runs
delete from other_runs where input_id = any ($1::text[])

-- name: delete_unmatched
delete from unmatched_runs where run_id = any ($1::text[])

-- name: insert_submissions
insert into submissions (submission_id, workflow_id, workflow_version, priority, expected, created_at)
select * from unnest($1::text[], $2::text[], $3::text[], $4::smallint[], $5::bigint[], $6::timestamptz[])
on conflict do nothing

-- name: insert_deliveries
insert into deliveries as known (run_id, event_type, chunk, attempt, input_id, first_seen)
select distinct on (1, 2) *
from unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::text[], $6::timestamptz[])
     as given (run_id, event_type, chunk, attempt, input_id, first_seen)
order by 1, 2, 6
on conflict (run_id, event_type) do update
set first_seen = least(known.first_seen, excluded.first_seen),
    chunk = coalesce(known.chunk, excluded.chunk),
    attempt = coalesce(known.attempt, excluded.attempt),
    input_id = coalesce(known.input_id, excluded.input_id)

-- name: insert_quarantine
-- If the quarantine holds the message already and its state is RETRIED, the message was published again and still
-- cannot be stored, so it is reopened. A discarded message stays discarded. All events about one source lie in one
-- partition, so they are applied in the order in which they were written.
insert into quarantine as known (source, topic, partition, "offset", reason, raw, headers, key, first_seen)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
on conflict (source) do update
set first_seen = least(known.first_seen, excluded.first_seen),
    reason = case when known.state = 'RETRIED' then excluded.reason else known.reason end,
    state = case when known.state = 'RETRIED' then 'OPEN' else known.state end

-- name: decide_quarantine
update quarantine set state = $2, reason = coalesce($3, reason), decided_at = $4 where source = $1

-- name: insert_decision
insert into decisions as known (
    event_id, kind, workflow_id, submission_id, chunk, attempt, batch_id, source, decided_by, reason, decided_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
on conflict (event_id) do update set decided_at = least(known.decided_at, excluded.decided_at)

-- name: upsert_attempt
insert into batches as known (
    chunk, attempt, batch_id, submission_id, workflow_id, workflow_version, priority, expected, state, reason,
    requested_at, returned_at, in_doubt_at, resent_at, rejected_at, submitted_at, input_ids,
    fingerprints, cut_at, cancelled_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, 'SENDING', $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)
on conflict (chunk, attempt) do update
set batch_id = coalesce(known.batch_id, excluded.batch_id),
    workflow_id = coalesce(known.workflow_id, excluded.workflow_id),
    workflow_version = coalesce(known.workflow_version, excluded.workflow_version),
    priority = coalesce(known.priority, excluded.priority),
    expected = greatest(known.expected, excluded.expected),
    -- If events give different reasons, keep the greatest, so that the order of arrival does not matter.
    reason = greatest(known.reason, excluded.reason),
    requested_at = least(known.requested_at, excluded.requested_at),
    returned_at = least(known.returned_at, excluded.returned_at),
    in_doubt_at = least(known.in_doubt_at, excluded.in_doubt_at),
    resent_at = least(known.resent_at, excluded.resent_at),
    rejected_at = least(known.rejected_at, excluded.rejected_at),
    submitted_at = least(known.submitted_at, excluded.submitted_at),
    input_ids = case when cardinality(known.input_ids) = 0 then excluded.input_ids else known.input_ids end,
    fingerprints = coalesce(known.fingerprints, excluded.fingerprints),
    cut_at = least(known.cut_at, excluded.cut_at),
    cancelled_at = least(known.cancelled_at, excluded.cancelled_at)

-- name: lock_attempts
select chunk, attempt, batch_id, submission_id, expected, state, requested_at, returned_at, in_doubt_at, resent_at,
       rejected_at, cut_at, cancelled_at, submitted_at, settled_at, counts, runs_observed, duplicates, superseded
from batches
where (chunk, attempt) in (select c, a from unnest($1::text[], $2::int[]) as given (c, a))
order by chunk, attempt
for update

-- name: last_settled
select b.chunk, b.attempt, max(r.settled_at) as settled_at
from batches b
join unnest($1::text[], $2::int[]) as given (c, a) on b.chunk = given.c and b.attempt = given.a
left join lateral (
    select settled_at from results
    where input_id = any (b.input_ids) and results.chunk = b.chunk and results.attempt = b.attempt
) r on true
group by b.chunk, b.attempt

-- name: update_attempts
update batches b
set counts = given.counts, runs_observed = given.runs_observed, duplicates = given.duplicates,
    superseded = given.superseded, state = given.state, settled_at = given.settled_at
from unnest($1::text[], $2::int[], $3::jsonb[], $4::int[], $5::int[], $6::int[], $7::text[], $8::timestamptz[])
     as given (chunk, attempt, counts, runs_observed, duplicates, superseded, state, settled_at)
where b.chunk = given.chunk and b.attempt = given.attempt

-- name: current_rows
select input_id, external_id, submission_id, position, chunk, attempt, batch_id, file, metadata, run_id, status,
       failure_reason, failure_message, run, credits, source, observed_at, settled_at, version
from results where input_id = any ($1::text[])

-- name: current_sizes
-- pg_column_size returns the compressed size, so Postgres need not decompress the run.
select input_id, coalesce(pg_column_size(run), 0) as size
from results where input_id = any ($1::text[]) or run_id = any ($2::text[])

-- name: current_versions
select input_id, version, observed_at, coalesce(pg_column_size(run), 0) as size
from results where input_id = any ($1::text[])

-- name: current_attempts
select chunk, attempt, batch_id, submission_id, expected, state, counts, runs_observed, duplicates, superseded,
       settled_at
from batches
where (chunk, attempt) in (select c, a from unnest($1::text[], $2::int[]) as given (c, a))

-- name: settled_submissions
-- This statement runs whenever a batch settles, so it must be cheap for a submission that is not settled, even if the
-- submission has many batches. It sums the counters of the batches only if the submission's last input has a row, and
-- no batch in the state SUBMITTED has an input that is not settled. The last input is in the chunk with the greatest
-- id, but only up to chunk c99999, because c100000 sorts before c99999. So the check of the last input is skipped for a
-- submission that has a chunk c100000. Chunks of retries are left out, because they repeat earlier inputs.
select s.submission_id, s.workflow_id, s.expected, jsonb_object_agg(c.status, c.inputs) as counts
from submissions s
cross join lateral (
    select e.key as status, sum(e.value::bigint) as inputs
    from batches b, jsonb_each_text(b.counts) e
    where b.submission_id = s.submission_id
      and not exists (
          select from batches o
          where o.submission_id = s.submission_id and o.state = 'SUBMITTED'
            and exists (select from jsonb_object_keys(o.counts) k (status)
                        where k.status not in ('PROCESSED', 'FAILED', 'CANCELLED', 'REJECTED', 'REFUSED')))
      and ((select r.position >= s.expected
            from (select input_ids[cardinality(input_ids)] as input_id from batches l
                  where l.submission_id = s.submission_id and l.chunk not like '%-r%' order by l.chunk desc limit 1) last
            join results r on r.input_id = last.input_id)
           or exists (select from batches m where m.chunk = s.submission_id || '.c100000'))
    group by e.key
) c
where s.submission_id = any ($1::text[])
group by s.submission_id
having sum(c.inputs) filter (where c.status in ('PROCESSED', 'FAILED', 'CANCELLED', 'REJECTED', 'REFUSED')) = s.expected
