-- name: state_of_tables
-- What identifies the table: the cluster, its timeline, which changes when a standby or a backup takes over, and the
-- table itself, which a rebuild replaces. And the number of the oldest transaction that has not ended: rows that older
-- transactions wrote are visible to all reads from now on.
select (select system_identifier from pg_control_system()) || '/'
       || case when pg_is_in_recovery() then 'standby' else left(pg_walfile_name(pg_current_wal_lsn()), 8) end || '/'
       || 'everyrun.results'::regclass::oid as tables,
       pg_snapshot_xmin(pg_current_snapshot())::text as oldest

-- name: waiting_for_a_new_try
-- Number of unsent inputs that have a row, because an earlier try was sent. The chunks of retries have ids with -r and a
-- number.
select coalesce(sum(inputs), 0)::bigint from everyrun_queue.unsent($1) where chunk ~ '-r[0-9]'

-- name: begin_part
-- The last of the next $3 inputs of the submission $1 after the input $2; null if there is none. And how Postgres writes
-- times and numbers, until the connection returns to its pool, which resets it.
select (
           select max(input_id)
           from (
               select input_id from everyrun.results
               where input_id > $2 and input_id < $1 || ';' order by input_id limit $3
           ) part
       ),
       set_config('timezone', 'UTC', false), set_config('datestyle', 'ISO', false),
       set_config('extra_float_digits', '1', false)

-- name: part
-- The rows of a range of inputs. Python inserts the columns, the numbers of the parameters, and the filter.
select /*columns*/
from everyrun.flat_results
where input_id > /*after*/ and input_id <= /*until*/ and submission_id = /*submission*/ and /*filter*/
order by input_id

-- name: filter
-- A condition of `part`. Python inserts the conditions of filters.sql, which are on rows of results.
input_id in (
    select input_id from everyrun.results where input_id > /*after*/ and input_id <= /*until*/ and /*conditions*/
)

-- name: extracted
-- A column of `part`.
(
    select jsonb_agg(jsonb_build_object('step', e.step_name, 'value', e.value))
    from everyrun.extractions e where e.input_id = flat_results.input_id
) as extracted

-- name: as_json
select row_to_json(line)::text from (/*part*/) line
