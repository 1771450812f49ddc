-- name: submission
select submission_id, workflow_id, workflow_version, priority, expected, created_at
from everyrun.submissions where submission_id = $1
union all
-- Handed in a moment ago: its event is on its way.
select submission_id, workflow_id, workflow_version, priority, expected, created_at
from everyrun_queue.submissions where submission_id = $1
limit 1

-- name: counts
select status, sum(inputs)::bigint as inputs from everyrun.submission_counts where submission_id = $1 group by status

-- name: counted_rows
select status, count(*) as inputs from everyrun.results
where input_id >= $1 || ':' and input_id < $1 || ';'
group by status

-- name: batch_lines
select * from everyrun.report where submission_id = $1 order by chunk, attempt

-- name: batch_lines_after
select * from everyrun.report
where submission_id = $1 and (chunk, attempt) > ($2::text, $3::int) order by chunk, attempt limit $4

-- name: batch
select r.*, b.workflow_id, b.workflow_version, b.priority, b.reason, b.requested_at, b.submitted_at, b.settled_at
from everyrun.report r join everyrun.batches b using (chunk, attempt)
where r.batch_id = $1

-- name: states
select state, count(*) as batches from everyrun.batches where submission_id = $1 group by state

-- name: unmatched
select count(*) from everyrun.unmatched_runs u
where exists (select from everyrun.batches b where b.submission_id = $1 and (b.batch_id = u.batch_id or b.chunk = u.chunk))

-- name: pending_deliveries
-- A link not fetched yet: nothing that far is known of its run.
select count(distinct d.run_id) from everyrun.deliveries d
join everyrun.batches b on b.chunk = d.chunk and b.attempt = d.attempt
where b.submission_id = $1
  and not exists (
      select from everyrun.results r where r.run_id = d.run_id
      and (r.status in ('PROCESSED', 'FAILED', 'CANCELLED', 'REJECTED')
           or (r.status = 'NEEDS_REVIEW' and d.event_type = 'workflow_run.needs_review')))
  and not exists (
      select from everyrun.duplicate_runs r where r.run_id = d.run_id
      and (r.status in ('PROCESSED', 'FAILED', 'CANCELLED', 'REJECTED')
           or (r.status = 'NEEDS_REVIEW' and d.event_type = 'workflow_run.needs_review')))

-- name: results
-- One page by input id. A submission is a range of the primary key, a batch the list of its inputs, and an external
-- id alone the ids it makes with each submission: no filter needs an index of its own.
select input_id, external_id, submission_id, batch_id, position, file, metadata, run_id, status, failure_reason,
       failure_message, credits, source, observed_at, settled_at, version, case when $7 then run end as run
from everyrun.results
where ($1::text is null or (input_id >= $1 || ':' and input_id < $1 || ';'))
  and ($2::text is null or input_id = any (array(select unnest(input_ids) from everyrun.batches where batch_id = $2)))
  and ($3::text is null or status = $3)
  and ($4::text is null or input_id = any (array(select submission_id || ':' || $4 from everyrun.submissions)))
  and ($5::text is null or input_id > $5)
order by input_id
limit $6

-- name: unsent
-- Inputs of attempts that are under way or in doubt; such a chunk has no rows of results yet.
select i.input_id, b.submission_id, b.batch_id, b.chunk, b.attempt,
       case when bool_or(b.state = 'IN_DOUBT') over (partition by b.chunk) then 'IN_DOUBT' else 'SENDING' end as status
from everyrun.batches b, unnest(b.input_ids) as i (input_id)
where b.state in ('SENDING', 'IN_DOUBT')
  and not exists (select from everyrun.batches o where o.chunk = b.chunk and o.state in ('SUBMITTED', 'SETTLED', 'REFUSED'))
  and ($1::text is null or b.submission_id = $1)
  and ($2::text is null or i.input_id = $2)
  and ($3::text is null or i.input_id > $3)
order by i.input_id
limit $4

-- name: waiting
select i.submission_id || ':' || i.external_id as input_id, i.submission_id, i.external_id, i.position
from everyrun_queue.inputs i
join everyrun_queue.chunks c
  on c.submission_id = i.submission_id and i.position between c.first_position and c.last_position
where i.submission_id = $1 and c.state = 'waiting'
  and ($2::text is null or i.submission_id || ':' || i.external_id > $2 collate "C")
order by 1 collate "C"
limit $3

-- name: result
select input_id, external_id, submission_id, batch_id, position, chunk, attempt, file, metadata, run_id, status,
       failure_reason, failure_message, credits, source, observed_at, settled_at, version, run
from everyrun.results where input_id = $1

-- name: queued
select i.submission_id, i.external_id, i.position from everyrun_queue.inputs i
where i.submission_id = $1 and i.external_id = $2
