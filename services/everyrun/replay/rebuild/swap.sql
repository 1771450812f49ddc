-- name: lock_offsets
-- This lock does not block readers. It blocks processors: the first statement of each of their transactions is
-- "select ... for update" on this table, which waits for the lock.
lock table applied_offsets in exclusive mode

-- name: schema_comment
select obj_description(oid, 'pg_namespace') from pg_namespace where nspname = $1

-- name: comment
select format('comment on schema %I is %L', $1::text, $2::text)

-- name: server_time
select clock_timestamp()

-- name: old_snapshots
-- The oldest transaction of this database that holds a snapshot and began before $1, except for the transaction of the
-- swap itself (pid $2). Transactions that wait for the swap's lock are left out. They are harmless: they are processors
-- at their first statement, and take a new snapshot for each later statement. Run this query outside a transaction:
-- inside one, pg_stat_activity shows the same state each time.
select pid, application_name, date_trunc('second', clock_timestamp() - xact_start) as age
from pg_stat_activity
where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
  and xact_start < $1 and backend_xmin is not null and pid <> $2 and $2 <> all (pg_blocking_pids(pid))
order by xact_start
limit 1

-- name: hidden_session
-- A session of another role whose transaction this role may not see. The server's own processes are left out: they have
-- no role.
select pid, usename, quote_ident(current_user) as own from pg_stat_activity
where datname = current_database() and usesysid is not null and query = '<insufficient privilege>'
limit 1

-- name: grants
-- One statement per right that another role has on the live schema, its tables, views or single columns. The statements
-- grant the same rights on the rebuilt schema. A view of a user, which is only in the live schema, keeps its rights.
select format('grant %s%s to %s%s', given.privilege_type, given.place,
              case given.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(given.grantee)) end,
              case when given.is_grantable then ' with grant option' else '' end)
from (
    select a.*, format(' on schema %I', $2::text) as place
    from pg_namespace n, aclexplode(n.nspacl) a
    where n.nspname = $1 and a.grantee <> n.nspowner
    union all
    select a.*, format(' on %I.%I', $2::text, c.relname)
    from pg_class c, aclexplode(c.relacl) a
    where c.relnamespace = $1::text::regnamespace and c.relkind in ('r', 'v') and a.grantee <> c.relowner
      and to_regclass(format('%I.%I', $2, c.relname)) is not null
    union all
    select a.*, format(' (%I) on %I.%I', t.attname, $2::text, c.relname)
    from pg_class c join pg_attribute t on t.attrelid = c.oid, aclexplode(t.attacl) a
    where c.relnamespace = $1::text::regnamespace and c.relkind in ('r', 'v') and a.grantee <> c.relowner
      and to_regclass(format('%I.%I', $2, c.relname)) is not null
) given

-- name: dependents
-- Objects that depend on the schema or on its contents, and are of a kind that Everyrun does not create there: views in
-- other schemas (if $2 is false, only materialized ones), foreign keys, publications (even of the whole schema),
-- triggers, rules, policies, functions, types of columns, statistics, default privileges. Row security needs a query of its own: if a table has row security without a
-- policy, there is no object to find, but every row is hidden.
with own as (
    select 'pg_namespace'::regclass as classid, $1::text::regnamespace::oid as objid
    union all
    select 'pg_class'::regclass, oid from pg_class where relnamespace = $1::text::regnamespace
    union all
    select 'pg_type'::regclass, oid from pg_type where typnamespace = $1::text::regnamespace
    union all
    select 'pg_constraint'::regclass, oid from pg_constraint where connamespace = $1::text::regnamespace
    union all
    select 'pg_attrdef'::regclass, a.oid
    from pg_attrdef a join pg_class c on c.oid = a.adrelid where c.relnamespace = $1::text::regnamespace
    union all
    select 'pg_rewrite'::regclass, r.oid
    from pg_rewrite r join pg_class c on c.oid = r.ev_class
    where c.relnamespace = $1::text::regnamespace and r.rulename = '_RETURN'
)
select distinct pg_describe_object(d.classid, d.objid, d.objsubid)
from pg_depend d
where (d.refclassid, d.refobjid) in (select classid, objid from own)
  and (d.classid, d.objid) not in (select classid, objid from own)
  and ($2 or not exists (
      select from pg_rewrite r join pg_class v on v.oid = r.ev_class
      where d.classid = 'pg_rewrite'::regclass and r.oid = d.objid and r.rulename = '_RETURN' and v.relkind = 'v'))
  and not exists (
      select from pg_trigger t where d.classid = 'pg_trigger'::regclass and t.oid = d.objid and t.tgisinternal)
  and not exists (
      select from pg_class c
      where d.classid = 'pg_class'::regclass and c.oid = d.objid and c.relnamespace = 'pg_toast'::regnamespace)
union all
select format('row security of %s', oid::regclass)
from pg_class where relnamespace = $1::text::regnamespace and relrowsecurity
order by 1

-- name: foreign_objects
-- Relations and columns that the first schema has and the second schema does not have. Views only if $3 is true.
select format('%s %I.%I', case c.relkind when 'i' then 'index' when 'v' then 'view' else 'relation' end, $1::text, c.relname)
from pg_class c
where c.relnamespace = $1::text::regnamespace and c.relkind in ('r', 'v', 'i', 'm', 'S', 'f', 'p')
  and ($3 or c.relkind <> 'v')
  and not exists (
      select from pg_class o where o.relnamespace = $2::text::regnamespace and (o.relname, o.relkind) = (c.relname, c.relkind))
union all
select format('column %I of %I.%I', a.attname, $1::text, c.relname)
from pg_attribute a
join pg_class c on c.oid = a.attrelid
join pg_class o on o.relnamespace = $2::text::regnamespace and (o.relname, o.relkind) = (c.relname, c.relkind)
where c.relnamespace = $1::text::regnamespace and c.relkind = 'r' and a.attnum > 0 and not a.attisdropped
  and not exists (select from pg_attribute b where b.attrelid = o.oid and b.attname = a.attname and not b.attisdropped)
order by 1

-- name: lock_within
select set_config('lock_timeout', $1, true)

-- name: lock_all
-- Statements that lock every table and view of the schema until the end of the transaction.
select format('lock table %I.%I in access exclusive mode', $1::text, relname)
from pg_class where relnamespace = $1::text::regnamespace and relkind in ('r', 'v')
order by relkind, relname
