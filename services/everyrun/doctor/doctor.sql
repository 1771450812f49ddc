-- name: server
select clock_timestamp() as now, current_setting('server_version_num')::int as version,
       pg_is_in_recovery() as standby, current_setting('transaction_read_only')::bool as read_only

-- name: limits
select name, current_setting(name) as value, source from pg_settings
where name = any($1::text[]) and current_setting(name) <> '0' order by name

-- name: has_migrations
select to_regclass(quote_ident($1::text) || '.schema_migrations') is not null

-- name: migrations_of_everyrun
select version from everyrun.schema_migrations order by version

-- name: migrations_of_everyrun_queue
select version from everyrun_queue.schema_migrations order by version

-- name: migrations_of_everyrun_index
select version from everyrun_index.schema_migrations order by version

-- name: cluster_ids
select distinct cluster_id from everyrun.applied_offsets order by cluster_id

-- name: workflows
select workflow_id from everyrun_queue.submissions group by workflow_id order by max(created_at) desc limit 20

-- name: lost
-- Submissions that lost inputs, or the links and passwords of their files, when a backup of the queue was restored.
select s.submission_id, s.idempotency_key,
       s.lost_inputs + coalesce(sum(c.last_position - c.first_position + 1), 0)::bigint as inputs
from everyrun_queue.submissions s
left join everyrun_queue.chunks c on c.submission_id = s.submission_id and c.files_lost and c.state = 'held'
where s.lost_inputs > 0 or c.chunk is not null
group by s.submission_id
order by s.submission_id desc limit 20

-- name: applied
select topic, partition, next_offset from everyrun.applied_offsets

-- name: swept
select b.workflow_id, count(*) as batches,
       extract(epoch from now() - coalesce(
           (select max(s.complete_at) from everyrun_queue.sweeps s where s.workflow_id = b.workflow_id),
           min(b.submitted_at)))::float8 as seconds
from everyrun.batches b
where b.state = 'SUBMITTED' and b.workflow_id is not null and b.submitted_at > now() - make_interval(secs => $1)
group by b.workflow_id
order by seconds desc
limit 20

-- name: receivers
select receiver_id, coalesce(extract(epoch from now() - failing_since), 0)::float8 as seconds, last_error
from everyrun_queue.receivers where state = 'active' order by receiver_id limit 1000

-- name: late
-- Inputs that were not sent and have waited too long. If there is a time limit for what they are waiting for, that has
-- passed. Otherwise they have waited for more than $1 seconds.
select waits_for, status, min(detail) as detail, min(submission_id) as submission_id, min(workflow_id) as workflow_id,
       count(distinct submission_id) as submissions, sum(inputs)::bigint as inputs, max(until) as until,
       coalesce(min(until) < now() - interval '1 minute', false) as passed
from everyrun_queue.unsent()
where coalesce(late_at, created_at + make_interval(secs => $1)) <= now()
group by waits_for, status
order by inputs desc

-- name: write_queue
update everyrun_queue.installation set installation = installation

-- name: write_projection
insert into everyrun.applied_offsets (topic, partition, next_offset, cluster_id, partitions)
values ('doctor', 0, 0, 'doctor', 1)
