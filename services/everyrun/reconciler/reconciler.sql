-- name: open_batches
select batch_id,
       extract(epoch from submitted_at)::float8 as submitted_at,
       coalesce((select sum(value::bigint) from jsonb_each_text(counts)
                 where key in ('PROCESSED', 'FAILED', 'CANCELLED', 'REJECTED')), 0)::bigint as settled
from everyrun.batches
where state = 'SUBMITTED' and batch_id is not null
  and submitted_at <= now() - make_interval(secs => $1)
  and submitted_at > now() - make_interval(secs => $2)
order by submitted_at;

-- name: known_runs
select run_id, status from everyrun.results where run_id = any ($1::text[])
union all
select run_id, status from everyrun.duplicate_runs where run_id = any ($1::text[])
union all
select run_id, status from everyrun.unmatched_runs where run_id = any ($1::text[]);

-- name: doubts
select workflow_id,
       min(requested_at) as since,
       bool_or(state in ('IN_DOUBT', 'SENDING')) as urgent
from everyrun.batches
where workflow_id is not null and requested_at is not null
  and ((state in ('IN_DOUBT', 'SENDING') and requested_at < now() - interval '3 seconds')
       or (state = 'RESENT' and resent_at > now() - interval '1 day'))
group by workflow_id
order by workflow_id;

-- name: known_batches
select batch_id from everyrun.batches where batch_id = any ($1::text[])
union
select batch_id from everyrun.unmatched_runs where batch_id = any ($1::text[]);

-- name: lead
select pg_try_advisory_lock(hashtext('everyrun.reconciler'));
