-- name: applied_offsets
select topic, partition, next_offset, cluster_id, partitions from applied_offsets

-- name: same_texts
-- So that the same value is the same text in every session.
select set_config('timezone', 'UTC', false), set_config('datestyle', 'ISO', false),
       set_config('extra_float_digits', '1', false), set_config('bytea_output', 'hex', false)

-- name: schema_comment
select obj_description(oid, 'pg_namespace') as comment from pg_namespace where nspname = $1

-- name: hold
select pg_try_advisory_lock(hashtext('everyrun schema'), hashtext($1))

-- name: tables
select c.relname from pg_class c where c.relnamespace = $1::text::regnamespace and c.relkind = 'r' order by 1
