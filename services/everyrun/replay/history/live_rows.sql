-- name: row_of_input
select input_id, external_id, submission_id, batch_id, position, chunk, attempt, file::text as file,
       metadata::text as metadata, run_id, status, failure_reason, failure_message, run::text as run, credits, source,
       observed_at, settled_at, version
from everyrun.results where input_id = $1

-- name: compare_json
-- For each column: whether the two values are the same JSON, and the second value as Postgres writes it.
select g.column, g.live::jsonb is not distinct from g.log::jsonb as same, g.log::jsonb::text as log
from unnest($1::text[], $2::text[], $3::text[]) as g ("column", live, log)

-- name: queued_input
-- The status of an input in the queue, if it has no row in results.
select i.submission_id, c.workflow_id, c.chunk, c.attempt, c.status, c.waits_for, c.detail, c.until, 1 as inputs
from everyrun_queue.inputs i
join everyrun_queue.unsent(i.submission_id) c on i.position between c.first_position and c.last_position
where i.submission_id = $1 and i.external_id = $2

-- name: applied_offsets
select topic, partition, next_offset from everyrun.applied_offsets

-- name: similar_ids
-- Full ids that the user may have meant by $1: inputs with the external id $1 in the newest 1,000 submissions and, if
-- $2 is true, ids that begin with $1. U+10FFFF sorts after every other character.
(
    select r.input_id as id
    from (select submission_id from everyrun.submissions order by submission_id desc limit 1000) s
    join everyrun.results r on r.input_id = s.submission_id || ':' || $1::text
    order by s.submission_id desc limit 3
)
union
(
    select i.submission_id || ':' || i.external_id
    from (select submission_id from everyrun_queue.submissions order by submission_id desc limit 1000) s
    join everyrun_queue.inputs i on i.submission_id = s.submission_id and i.external_id = $1
    order by s.submission_id desc limit 3
)
union
(
    select input_id from everyrun.results
    where $2::boolean and input_id >= $1 and input_id < $1 || chr(1114111) order by input_id limit 3
)
union
(
    select run_id from everyrun.results
    where $2::boolean and run_id >= $1 and run_id < $1 || chr(1114111) order by run_id limit 3
)
union
(
    select batch_id from everyrun.batches
    where $2::boolean and batch_id >= $1 and batch_id < $1 || chr(1114111) order by batch_id limit 3
)
order by id desc limit 3
