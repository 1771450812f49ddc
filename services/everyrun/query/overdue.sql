-- name: overdue
-- Inputs of batches sent longer than $1 seconds ago that are still open, each with the reason. An input without a run
-- is said to be without one only when the last complete list of its batch had no run left that it could be.
select r.input_id, r.external_id, r.submission_id, r.batch_id, r.run_id, r.status, b.submitted_at as sent_at,
       case
           when g.run_id is not null then 'deleted_upstream'
           when r.status = 'NEEDS_REVIEW' then 'needs_review'
           when r.run_id is not null then 'still_running'
           when p.batch_id is null then 'not_polled'
           when p.running > named.running then 'still_running'
           when exists (select from everyrun_queue.gone_runs o where o.batch_id = b.batch_id) then 'deleted_upstream'
           else 'not_listed'
       end as reason
from everyrun.batches b
join everyrun.results r on r.input_id = any (b.input_ids) and r.chunk = b.chunk and r.attempt = b.attempt
left join everyrun_queue.gone_runs g on g.run_id = r.run_id
left join everyrun_queue.polls p on p.batch_id = b.batch_id
left join lateral (
    select count(*) as running from everyrun.results o
    where o.input_id = any (b.input_ids) and o.batch_id = b.batch_id and o.run_id is not null
      and o.status in ('PENDING', 'PROCESSING')
) named on true
where b.state = 'SUBMITTED' and b.submitted_at < now() - make_interval(secs => $1)
  and r.status not in ('PROCESSED', 'FAILED', 'CANCELLED', 'REJECTED', 'REFUSED')
  and ($2::text is null or b.submission_id = $2)
  and ($3::text is null or r.input_id > $3)
order by r.input_id
limit $4

-- name: unsent_overdue
-- Whether a submission was handed in longer than $2 seconds ago, and whether the queue has it.
select s.created_at < now() - make_interval(secs => $2) as late,
       exists (select from everyrun_queue.submissions q where q.submission_id = s.submission_id) as queued
from everyrun.submissions s where s.submission_id = $1
