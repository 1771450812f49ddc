-- name: schema_comment
select obj_description(oid, 'pg_namespace') as comment from pg_namespace where nspname = $1

-- name: try_lock_schema
select pg_try_advisory_lock(hashtext('everyrun schema'), hashtext($1))

-- name: tables
select c.relname from pg_class c where c.relnamespace = $1::text::regnamespace and c.relkind = 'r' order by 1
