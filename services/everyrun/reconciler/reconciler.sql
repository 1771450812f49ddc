-- name: open_batches
-- The batches that must be polled and were sent after $3. If $3 is null: all batches that must be polled.
select b.batch_id, now() - make_interval(secs => $1) as up_to,
       extract(epoch from now() - p.complete_at)::float8 as polled_ago,
       extract(epoch from p.due_at - now())::float8 as due_in
from everyrun.batches b
left join everyrun_queue.polls p using (batch_id)
where b.state = 'SUBMITTED' and b.batch_id is not null
  and b.submitted_at <= now() - make_interval(secs => $1)
  and b.submitted_at > greatest(now() - make_interval(secs => $2), $3::timestamptz)
order by b.submitted_at

-- name: open_batch
-- The batch $1, if it must still be polled.
select b.batch_id, b.expected, extract(epoch from now() - b.submitted_at)::float8 as age,
       coalesce((select sum(value::bigint) from jsonb_each_text(b.counts)
                 where key in ('PROCESSED', 'FAILED', 'CANCELLED', 'REJECTED')), 0)::bigint as settled
from everyrun.batches b
where b.batch_id = $1 and b.state = 'SUBMITTED' and b.submitted_at > now() - make_interval(secs => $2)

-- name: gone_runs
select run_id from everyrun_queue.gone_runs where batch_id = $1

-- name: poll_again
-- Record that the batch $1 will be polled again in $2 seconds. If the batch waits only for a person ($3), the time is
-- also kept in due_at, which a restarted reconciler reads.
update everyrun_queue.polls
set next_at = now() + make_interval(secs => $2),
    due_at = case when $3 then now() + make_interval(secs => $2) else due_at end
where batch_id = $1

-- name: known_runs
-- The runs that the tables have. A run of ours is left out if its content was removed while it counted as foreign: it
-- must be fetched again, to get its content back.
select run_id, status, settled_at from everyrun.results where run_id = any ($1::text[]) and right(version, 1) <> '~'
union all
select run_id, status, settled_at from everyrun.other_runs
where run_id = any ($1::text[]) and right(version, 1) <> '~'
union all
select run_id, status, settled_at from everyrun.unmatched_runs where run_id = any ($1::text[])

-- name: not_listed
-- The runs of the batch $1 that have not ended according to the tables, and that are missing in Extend's complete list
-- of the batch's runs ($2).
select r.run_id
from everyrun.batches b
join everyrun.results r on r.input_id = any (b.input_ids) and r.batch_id = b.batch_id
where b.batch_id = $1 and r.run_id is not null and r.run_id <> all ($2::text[])
  and r.status not in ('PROCESSED', 'FAILED', 'CANCELLED', 'REJECTED')
  and not exists (select from everyrun_queue.gone_runs g where g.run_id = r.run_id)

-- name: save_poll
insert into everyrun_queue.polls (batch_id, complete_at, listed, running) values ($1, now(), $2, $3)
on conflict (batch_id) do update
set complete_at = excluded.complete_at, listed = excluded.listed, running = excluded.running

-- name: save_gone
insert into everyrun_queue.gone_runs (run_id, batch_id, gone_at) values ($1, $2, now()) on conflict do nothing

-- name: forget_gone
delete from everyrun_queue.gone_runs where run_id = any ($1::text[])

-- name: workflows
-- Workflows to sweep. If $2 is not null: only that workflow.
-- since: among the batches whose runs may still change, the time when the oldest was sent.
-- doubt_since: the start of the oldest call in doubt that evidence may still settle.
-- held_calls: the starts of the calls in doubt that only a person can settle, because the chunk is held or the queue
-- has lost it. held_for: for how many seconds each of these calls has been in doubt.
-- oldest_call: a time before which no call in doubt was made. If the last attempt of a chunk is in doubt, the earlier
-- attempts of that chunk count as in doubt too. Null if the queue has a call in doubt that the result tables do not
-- have yet.
-- The row of an attempt has no workflow if the attempt's worker ended before it recorded what it sends. The workflow is
-- then taken from the submission.
-- The recursive query jumps through the index from one workflow to the next, so that it does not read all batches.
with recursive named as (
    (select workflow_id from everyrun.batches where workflow_id is not null order by workflow_id limit 1)
    union all
    select (select b.workflow_id from everyrun.batches b where b.workflow_id > n.workflow_id
            order by b.workflow_id limit 1)
    from named n where n.workflow_id is not null
),
doubts as materialized (
    select coalesce(b.workflow_id, s.workflow_id) as workflow_id, b.chunk, q.state as queued,
           coalesce(b.requested_at, b.submitted_at, b.in_doubt_at) as begun_at,
           coalesce(b.in_doubt_at, b.requested_at) as doubted_at
    from everyrun.batches b
    left join everyrun.submissions s using (submission_id)
    left join everyrun_queue.chunks q on q.chunk = b.chunk
    where b.state in ('SENDING', 'IN_DOUBT')
      and coalesce(b.requested_at, b.submitted_at, b.in_doubt_at) > now() - make_interval(secs => $1)
),
calls as (
    select d.workflow_id, min(coalesce(b.requested_at, s.created_at, b.in_doubt_at)) as oldest
    from (select distinct workflow_id, chunk from doubts where queued in ('sending', 'in_doubt')) d
    join everyrun.batches b on b.chunk = d.chunk
    left join everyrun.submissions s on s.submission_id = b.submission_id
    group by d.workflow_id
),
unapplied as (
    select distinct s.workflow_id
    from everyrun_queue.chunks c join everyrun_queue.submissions s using (submission_id)
    where c.state in ('sending', 'in_doubt')
      and not exists (select from everyrun.batches b where b.chunk = c.chunk and b.attempt = c.attempt)
),
every as (
    select workflow_id from named where workflow_id is not null
    union
    select workflow_id from doubts where workflow_id is not null
),
found as (
    select e.workflow_id,
           least((select coalesce(b.requested_at, b.submitted_at, b.in_doubt_at) from everyrun.batches b
                  where b.workflow_id = e.workflow_id
                    and coalesce(b.requested_at, b.submitted_at, b.in_doubt_at) > now() - make_interval(secs => $1)
                  order by coalesce(b.requested_at, b.submitted_at, b.in_doubt_at) limit 1),
                 (select min(d.begun_at) from doubts d where d.workflow_id = e.workflow_id)) as since
    from every e where $2::text is null or e.workflow_id = $2
)
select f.workflow_id, f.since, d.doubt_since, d.held_calls, d.held_for,
       (select w.begun_at from everyrun_queue.sweeps w where w.workflow_id = f.workflow_id
        order by w.begun_at desc limit 1) as last_begun_at,
       case when not exists (select from unapplied u where u.workflow_id = f.workflow_id) then
           least(now(), (select c.oldest from calls c where c.workflow_id = f.workflow_id))
       end as oldest_call,
       extract(epoch from now())::float8 as now
from found f
cross join lateral (
    select min(begun_at) filter (
               where queued in ('sending', 'in_doubt') and begun_at < now() - interval '3 seconds') as doubt_since,
           coalesce(array_agg(begun_at order by begun_at) filter (where coalesce(queued, 'held') = 'held'), '{}')
               as held_calls,
           coalesce(array_agg(extract(epoch from now() - doubted_at)::float8 order by begun_at)
                    filter (where coalesce(queued, 'held') = 'held'), '{}') as held_for
    from doubts where doubts.workflow_id = f.workflow_id
) d
where f.since is not null
order by f.workflow_id

-- name: save_failed
-- Record a run that cannot be fetched, but only if its batch is settled. Such a batch is no longer polled. A later
-- sweep finds this row, and fetches the run.
insert into everyrun_queue.gone_runs (run_id, batch_id, gone_at)
select $1, $2, now() where exists (select from everyrun.batches b where b.batch_id = $2 and b.state = 'SETTLED')
on conflict do nothing

-- name: failed_runs
-- Runs of the workflow's settled batches whose new state could not be fetched yet (see save_failed).
select g.run_id, g.batch_id
from everyrun_queue.gone_runs g join everyrun.batches b using (batch_id)
where b.workflow_id = $1 and b.state = 'SETTLED' and b.submitted_at > now() - make_interval(secs => $2)
order by g.gone_at, g.run_id

-- name: now
select clock_timestamp()

-- name: batches_listed
-- Those of the batches $1 that are known. ours: true if the batch is ours. polled: true if it is still polled. A batch
-- of another caller is known if one of its runs was fetched.
select batch_id, state = 'SUBMITTED' and submitted_at > now() - make_interval(secs => $2) as polled, true as ours
from everyrun.batches where batch_id = any ($1::text[])
union all
select distinct u.batch_id, false, false from everyrun.unmatched_runs u
where u.batch_id = any ($1::text[]) and not exists (select from everyrun.batches b where b.batch_id = u.batch_id)

-- name: save_sweep
insert into everyrun_queue.sweeps (workflow_id, begun_at, complete_at) values ($1, $2, clock_timestamp())

-- name: forget_sweeps
delete from everyrun_queue.sweeps where workflow_id = $1 and begun_at < $2::timestamptz - interval '7 days'

-- name: lead
select pg_try_advisory_lock(hashtext('everyrun.reconciler'))
