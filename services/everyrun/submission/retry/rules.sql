-- name: insert_rules
insert into everyrun_queue.rules (submission_id, retries, retry_reasons, stop_after_failures) values ($1, $2, $3, $4)
on conflict do nothing

-- name: due
-- Chunks whose inputs are settled, of submissions with automatic retries, that were not looked at yet. $1 is
-- the submission after which to begin.
select c.submission_id, array_agg(c.chunk order by c.chunk) as chunks, x.retries, x.retry_reasons
from everyrun_queue.rules x
join everyrun_queue.chunks c using (submission_id)
where x.retries > 0 and c.state = 'submitted' and not c.looked_at and c.submission_id > $1
  and exists (select from everyrun.batches b where b.chunk = c.chunk and b.state = 'SETTLED')
  and not exists (select from everyrun.batches b where b.chunk = c.chunk and b.state = 'SUBMITTED')
group by c.submission_id, x.retries, x.retry_reasons
order by c.submission_id limit 20

-- name: failed_of
-- The failed inputs of chunks that have had fewer than $3 new tries, and that nobody cancelled.
select r.external_id
from everyrun.batches b
cross join unnest(b.input_ids) as given (input_id)
join everyrun.results r on r.input_id = given.input_id and r.chunk = b.chunk and r.attempt = b.attempt
where b.chunk = any ($1::text[]) and r.status = 'FAILED' and (cardinality($2::text[]) = 0 or r.failure_reason = any ($2))
  and (select count(*) from everyrun_queue.inputs i
       where i.submission_id = r.submission_id and i.external_id = r.external_id and i.first_try is not null) < $3
  and not exists (
      select from everyrun_queue.cancellations x
      join everyrun_queue.inputs i on i.submission_id = x.submission_id and i.external_id = r.external_id
      where x.submission_id = r.submission_id and x.positions @> i.position)
order by r.position

-- name: mark_looked_at
update everyrun_queue.chunks set looked_at = true where chunk = any ($1::text[])

-- name: failing
-- Submissions that have more failed inputs than their rule allows, and that were not stopped for it before. Failures are
-- counted only if inputs are left to stop: this statement runs every few seconds, and settled submissions add up.
with unsent as materialized (
    select x.submission_id, x.stop_after_failures from everyrun_queue.rules x
    where x.stop_after_failures is not null and x.stopped_at is null
      and exists (select from everyrun_queue.chunks c where c.submission_id = x.submission_id
                  and c.state in ('waiting', 'sending', 'in_doubt', 'held'))
)
select x.submission_id, x.stop_after_failures, f.failed
from unsent x
cross join lateral (
    select coalesce(sum(c.value::bigint), 0) as failed
    from everyrun.batches b, jsonb_each_text(b.counts) c
    where b.submission_id = x.submission_id and c.key in ('FAILED', 'REFUSED')
) f
where f.failed > x.stop_after_failures
order by x.submission_id

-- name: mark_stopped
update everyrun_queue.rules set stopped_at = now() where submission_id = $1
