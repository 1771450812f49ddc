-- name: run
-- A run that the result tables have. batch_id: the batchId as the caller knows it.
-- trimmed: true if the tables keep only the main fields of the run.
select k.run, k.status, k.trimmed, coalesce(d.batch_id, k.batch_id) as batch_id
from (
    select run::text as run, status, batch_id, false as trimmed, submission_id
    from everyrun.results where run_id = $1
    union all
    select o.run::text, o.status, o.batch_id, false, b.submission_id
    from everyrun.other_runs o join everyrun.batches b using (chunk, attempt) where o.run_id = $1
    union all
    select run::text, status, batch_id, right(version, 1) = '~', null from everyrun.unmatched_runs where run_id = $1
) k
left join everyrun_queue.dropin_batches d using (submission_id)
where not exists (select from everyrun_queue.deleted_runs g where g.run_id = $1)
limit 1

-- name: batch
-- What a batchId names, with the parts of it that Extend has or will get: one row for each chunk. $2 is the submission
-- to which Everyrun would have given this batchId, or null.
-- whole: true if the id names a submission, false if it names a single batch at Extend.
-- told: true if the tables have a run of every input, with a status that Extend reports by a webhook.
select n.submission_id, n.whole, s.workflow_id, s.created_at, c.chunk, c.state, c.batch_id, c.first_position, c.last_position,
       b.submitted_at,
       coalesce(b.state = 'SETTLED' or (b.counts <> '{}' and not exists (
           select from jsonb_object_keys(b.counts) k
           where k not in ('PROCESSED', 'FAILED', 'CANCELLED', 'REJECTED', 'NEEDS_REVIEW', 'REFUSED'))), false) as told
from (
    select submission_id, true as whole, 1 as rank from everyrun_queue.dropin_batches where batch_id = $1
    union all
    select submission_id, true, 2 from everyrun_queue.submissions
    where submission_id = $2 and idempotency_key like 'dropin/%'
    union all
    select submission_id, false, 3 from everyrun_queue.chunks where batch_id = $1
    order by rank limit 1
) n
join everyrun_queue.submissions s using (submission_id)
join everyrun_queue.chunks c on c.submission_id = n.submission_id and (n.whole or c.batch_id = $1)
left join everyrun.batches b on b.batch_id = c.batch_id
where c.state <> 'cut'
order by c.chunk

-- name: newest
-- A page of the runs of these batches, by the time at which Everyrun learned of their state, the newest first. $6: also
-- show runs that are not the current run of an input.
select p.* from unnest($1::text[], $2::timestamptz[]) as b (batch_id, submitted_at)
cross join lateral (
    (select r.run_id, r.observed_at as moment, r.observed_at, b.submitted_at,
            (r.run - 'stepRuns' - 'metadata')::text as run
     from everyrun.results r
     where r.batch_id = b.batch_id and r.run_id is not null and ($3::text is null or r.status = $3)
       and ($7::timestamptz is null or (r.observed_at, r.run_id) < ($7, $8::text))
       and ($4::text is null or exists (
           select from jsonb_array_elements(r.run -> 'files') f where strpos(f ->> 'name', $4) > 0))
       and not exists (select from everyrun_queue.deleted_runs g where g.run_id = r.run_id)
     order by r.observed_at desc, r.run_id desc limit $5)
    union all
    (select o.run_id, o.observed_at, o.observed_at, b.submitted_at, (o.run - 'stepRuns' - 'metadata')::text
     from everyrun.other_runs o
     where $6 and o.batch_id = b.batch_id and ($3::text is null or o.status = $3)
       and ($7::timestamptz is null or (o.observed_at, o.run_id) < ($7, $8::text))
       and ($4::text is null or exists (
           select from jsonb_array_elements(o.run -> 'files') f where strpos(f ->> 'name', $4) > 0))
       and not exists (select from everyrun_queue.deleted_runs g where g.run_id = o.run_id)
     order by o.observed_at desc, o.run_id desc limit $5)
) p
order by p.moment desc, p.run_id desc limit $5

-- name: sorted
-- The same page in another order. $9 is updatedAt or createdAt, $10 is true for the newest first. Times are compared as
-- text. A run was created at its initialRunAt or, if it has none, when Extend accepted its batch.
with found as (
    select r.run_id, r.observed_at, b.submitted_at, r.status, r.run, 'results' as source
    from unnest($1::text[], $2::timestamptz[]) as b (batch_id, submitted_at)
    join everyrun.results r on r.batch_id = b.batch_id and r.run_id is not null
    union all
    select o.run_id, o.observed_at, b.submitted_at, o.status, o.run, 'other_runs'
    from unnest($1::text[], $2::timestamptz[]) as b (batch_id, submitted_at)
    join everyrun.other_runs o on o.batch_id = b.batch_id
    where $6
),
timed as (
    select f.run_id, f.observed_at, f.submitted_at, f.source,
           case when $9 = 'createdAt' and f.run ->> 'initialRunAt' is not null then f.run ->> 'initialRunAt'
                else to_char(case when $9 = 'createdAt' then f.submitted_at else f.observed_at end at time zone 'utc',
                             'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
           end collate "C" as moment
    from found f
    where ($3::text is null or f.status = $3)
      and ($4::text is null or exists (
          select from jsonb_array_elements(f.run -> 'files') n where strpos(n ->> 'name', $4) > 0))
      and not exists (select from everyrun_queue.deleted_runs g where g.run_id = f.run_id)
),
page as (
    select t.*, row_number() over (
               order by case when $10 then t.moment end desc, case when not $10 then t.moment end,
                        case when $10 then t.run_id end desc, case when not $10 then t.run_id end) as place
    from timed t
    where $7::text is null
       or case when $10 then (t.moment, t.run_id) < ($7, $8::text) else (t.moment, t.run_id) > ($7, $8::text) end
    order by place limit $5
)
select p.run_id, p.moment, p.observed_at, p.submitted_at,
       coalesce(r.run - 'stepRuns' - 'metadata', o.run - 'stepRuns' - 'metadata')::text as run
from page p
left join everyrun.results r on p.source = 'results' and r.run_id = p.run_id
left join everyrun.other_runs o on p.source = 'other_runs' and o.run_id = p.run_id
order by p.place

-- name: known_as
-- For batches at Extend: the batchIds under which their callers know them, where these differ.
select c.batch_id, d.batch_id as known_as
from everyrun_queue.chunks c join everyrun_queue.dropin_batches d using (submission_id)
where c.batch_id = any ($1::text[]) and d.batch_id <> c.batch_id

-- name: is_ours
-- True if Everyrun must learn of a change of the run, because the tables have the run.
select exists (select from everyrun.results where run_id = $1)
    or exists (select from everyrun.other_runs where run_id = $1)
    or exists (select from everyrun.unmatched_runs where run_id = $1)

-- name: save_deleted
insert into everyrun_queue.deleted_runs (run_id, deleted_by) values ($1, $2) on conflict do nothing

-- name: outcome
-- What became of a submission's chunks so far. paused: true if none of them is sent until a person acts.
select c.state, c.batch_id, c.reason, c.attempt,
       exists (select from everyrun_queue.paused p
               where (p.kind = 'workflow' and p.id = s.workflow_id)
                  or (p.kind = 'submission' and p.id = s.submission_id)) as paused
from everyrun_queue.chunks c join everyrun_queue.submissions s using (submission_id)
where c.submission_id = $1

-- name: save_answer
-- Keep the batchId with which the submission was answered first.
insert into everyrun_queue.dropin_batches (submission_id, batch_id) values ($1, $2) on conflict do nothing

-- name: answer
select batch_id from everyrun_queue.dropin_batches where submission_id = $1
