-- name: lock_offsets
-- Lets readers pass. A processor's transaction begins with "select ... for update" here, which waits.
lock table applied_offsets in exclusive mode

-- name: schema_comment
select obj_description(oid, 'pg_namespace') from pg_namespace where nspname = $1

-- name: comment
select format('comment on schema %I is %L', $1::text, $2::text)

-- name: clock
select clock_timestamp()

-- name: old_snapshots
-- Transactions of this database that hold a snapshot and began before, but for the one that swaps. One that waits for
-- that is a processor's at its first statement, and takes another snapshot for each. Asked outside a transaction:
-- inside one the answer would be the same each time.
select pid, application_name, date_trunc('second', clock_timestamp() - xact_start) as age
from pg_stat_activity
where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
  and xact_start < $1 and backend_xmin is not null and pid <> $2 and $2 <> all (pg_blocking_pids(pid))
order by xact_start
limit 1

-- name: unseen
-- A session of another role, of which this one may see neither the transaction nor what kind of process it is. Those of
-- the server itself have no role.
select pid, usename, quote_ident(current_user) as own from pg_stat_activity
where datname = current_database() and usesysid is not null and query = '<insufficient privilege>'
limit 1

-- name: grants
-- Rights that others were given on the live schema, what is in it and single columns, as statements that give them on
-- the rebuilt.
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
    union all
    select a.*, format(' (%I) on %I.%I', t.attname, $2::text, c.relname)
    from pg_class c join pg_attribute t on t.attrelid = c.oid, aclexplode(t.attacl) a
    where c.relnamespace = $1::text::regnamespace and c.relkind in ('r', 'v') and a.grantee <> c.relowner
) given

-- name: dependents
-- What depends on the schema or on anything in it and is not itself one of the kinds of thing that Everyrun has there:
-- views elsewhere, foreign keys, publications (also of the whole schema), triggers, rules, policies, functions, types of
-- columns, statistics, default rights. Row security without a policy is no object, and hides every row all the same.
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
-- What somebody has put into the schema that the other one does not have.
select format('%s %I.%I', case c.relkind when 'i' then 'index' when 'v' then 'view' else 'relation' end, $1::text, c.relname)
from pg_class c
where c.relnamespace = $1::text::regnamespace and c.relkind in ('r', 'v', 'i', 'm', 'S', 'f', 'p')
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
-- Statements that keep everybody from the schema's tables and views until the transaction's end.
select format('lock table %I.%I in access exclusive mode', $1::text, relname)
from pg_class where relnamespace = $1::text::regnamespace and relkind in ('r', 'v')
order by relkind, relname
