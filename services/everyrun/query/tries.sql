-- name: tries
-- The attempts that sent an input, and their runs of this input. $1 is the input id. All chunks in which an input was
-- sent begin with the id of its original chunk; a full stop sorts after a hyphen and before a digit.
with row as (
    select input_id, submission_id, split_part(chunk, '-', 1) as original from everyrun.results where input_id = $1
),
runs as (
    select chunk, attempt, run_id, status, failure_reason, failure_message, credits, settled_at, true as current
    from everyrun.results where input_id = $1 and run_id is not null
    union all
    select chunk, attempt, run_id, status, failure_reason, failure_message, credits, settled_at, false
    from everyrun.other_runs where input_id = $1
)
select b.chunk, b.attempt, b.state, b.reason, b.batch_id, coalesce(b.requested_at, b.submitted_at) as sent_at,
       r.run_id, r.status, r.failure_reason, r.failure_message, r.credits, r.settled_at, coalesce(r.current, false) as current
from row
join everyrun.batches b on b.submission_id = row.submission_id and b.chunk >= row.original and b.chunk < row.original || '.'
left join runs r on r.chunk = b.chunk and r.attempt = b.attempt
where row.input_id = any (b.input_ids) and b.state <> 'CUT'
order by b.chunk, b.attempt, r.run_id

-- name: requests
-- The retries that gave the input a new try.
select distinct x.retry, x.requested_by, x.reason, x.created_at
from everyrun_queue.inputs i
join everyrun_queue.chunks c on c.submission_id = i.submission_id and c.retry > 0
    and i.position between c.first_position and c.last_position
join everyrun_queue.retries x on x.submission_id = i.submission_id and x.retry = c.retry
where i.submission_id = $1 and i.external_id = $2 and i.first_try is not null
order by x.retry

-- name: submission
select created_at from everyrun.submissions where submission_id = $1
