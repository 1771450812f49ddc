-- name: overdue
-- Open inputs that Extend should have finished more than $1 seconds ago, each with the reason. Extend is expected to
-- work through the batches of a workflow in the order in which they were sent, at $5 files a minute. An input has the reason not_listed
-- only if the last complete list of its batch has no run that could belong to the input.
-- The first query computes what depends on the batch, so that it is computed once per batch and not once per input.
with late as materialized (
    select b.batch_id, b.chunk, b.attempt, b.input_ids, b.submitted_at, p.batch_id is null as not_polled,
           p.running > (
               select count(*) from unnest(b.input_ids) i (input_id) join everyrun.results o on o.input_id = i.input_id
               where o.batch_id = b.batch_id and o.run_id is not null and o.status in ('PENDING', 'PROCESSING')
           ) as has_more_running,
           exists (select from everyrun_queue.gone_runs o where o.batch_id = b.batch_id) as has_gone
    from everyrun.batches b left join everyrun_queue.polls p on p.batch_id = b.batch_id
    cross join lateral (
        -- The inputs that were open at Extend when the batch was sent, with its own.
        select coalesce(sum(o.expected), 0) as inputs from everyrun.batches o
        where o.workflow_id = b.workflow_id and o.submitted_at <= b.submitted_at
          and coalesce(o.requested_at, o.submitted_at, o.in_doubt_at)
              > b.submitted_at - interval '30 days'
          and (o.settled_at is null or o.settled_at > b.submitted_at)
    ) before
    where b.state = 'SUBMITTED' and b.submitted_at < now() - make_interval(secs => $1)
      and b.submitted_at < now() - make_interval(secs => $1 + 60 * before.inputs / $5::float8)
      and ($2::text is null or b.submission_id = $2)
)
select r.input_id, r.external_id, r.submission_id, r.batch_id, r.run_id, r.status, l.submitted_at as sent_at,
       case
           when g.run_id is not null then 'deleted_upstream'
           when r.status = 'NEEDS_REVIEW' then 'needs_review'
           when r.run_id is not null then 'still_running'
           when l.not_polled then 'not_polled'
           when l.has_more_running then 'still_running'
           when l.has_gone then 'deleted_upstream'
           else 'not_listed'
       end as reason
from late l
cross join unnest(l.input_ids) i (input_id)
join everyrun.results r on r.input_id = i.input_id and r.chunk = l.chunk and r.attempt = l.attempt
left join everyrun_queue.gone_runs g on g.run_id = r.run_id
where r.status not in ('PROCESSED', 'FAILED', 'CANCELLED', 'REJECTED', 'REFUSED')
  and ($3::text is null or i.input_id collate "C" > $3)
order by r.input_id
limit $4

-- name: by_reason
-- Number of overdue inputs by reason. Python puts the statement `overdue` before this as a common table expression.
select reason, count(*) as inputs from overdue group by reason

-- name: unsent_overdue
-- Unsent chunks that have waited too long. If there is a time limit for what they are waiting for, that has passed.
-- Otherwise they have waited for more than $2 seconds.
select chunk, submission_id, workflow_id, status, waits_for, detail, until, inputs
from everyrun_queue.unsent($1)
where coalesce(late_at, created_at + make_interval(secs => $2)) <= now()
order by chunk
limit 1000
