-- name: positions
select topic, partition, next_offset, cluster_id from everyrun_index.positions

-- name: know_partition
insert into everyrun_index.positions values ($1, $2, 0, $3) on conflict do nothing

-- name: lock_position
select next_offset, cluster_id from everyrun_index.positions where (topic, partition) = ($1, $2) for update

-- name: move_position
update everyrun_index.positions set next_offset = $3 where (topic, partition) = ($1, $2)

-- name: find
select place from everyrun_index.places where id = any ($1::bigint[])
union
select unnest(places) from everyrun_index.batch_places where id = any ($2::bigint[])

-- name: is_there
select to_regclass('everyrun_index.places') is not null

-- name: row_of_input
select input_id, external_id, submission_id, batch_id, position, chunk, attempt, file::text as file,
       metadata::text as metadata, run_id, status, failure_reason, failure_message, run::text as run, credits, source,
       observed_at, settled_at, version
from everyrun.results where input_id = $1

-- name: compare_json
-- Two values of jsonb each: whether they are equal, and the second as Postgres writes it.
select g.column, g.live::jsonb is not distinct from g.log::jsonb as same, g.log::jsonb::text as log
from unnest($1::text[], $2::text[], $3::text[]) as g ("column", live, log)

-- name: queued_input
-- An input that has no row in results, as the queue has it.
select i.submission_id, c.workflow_id, c.chunk, c.attempt, c.status, c.waits_for, c.detail, c.until, 1 as inputs
from everyrun_queue.inputs i
join everyrun_queue.unsent(i.submission_id) c on i.position between c.first_position and c.last_position
where i.submission_id = $1 and i.external_id = $2

-- name: applied
select topic, partition, next_offset from everyrun.applied_offsets
