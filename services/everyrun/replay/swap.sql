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

-- name: grants
-- Rights that others were given on the live schema and what is in it, as statements that give them on the rebuilt.
select format('grant %s on schema %I to %s', a.privilege_type, $2::text,
              case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end)
from pg_namespace n, aclexplode(n.nspacl) a
where n.nspname = $1 and a.grantee <> n.nspowner
union all
select format('grant %s on %I.%I to %s', a.privilege_type, $2::text, c.relname,
              case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end)
from pg_class c join pg_namespace n on n.oid = c.relnamespace, aclexplode(c.relacl) a
where n.nspname = $1 and c.relkind in ('r', 'v') and a.grantee <> c.relowner

-- name: dependents
-- Views and constraints outside the schema that name its tables, and publications of them.
select distinct format('%s %I.%I', case c.relkind when 'm' then 'materialized view' else 'view' end, n.nspname, c.relname)
from pg_depend d
join pg_class t on d.refclassid = 'pg_class'::regclass and d.refobjid = t.oid
join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
join pg_class c on c.oid = r.ev_class
join pg_namespace n on n.oid = c.relnamespace
where t.relnamespace = $1::text::regnamespace and c.relnamespace <> t.relnamespace
union all
select format('foreign key of %s', k.conrelid::regclass)
from pg_constraint k join pg_class t on t.oid = k.confrelid
where k.contype = 'f' and t.relnamespace = $1::text::regnamespace
union all
select format('publication %I', p.pubname)
from pg_publication p join pg_publication_rel r on r.prpubid = p.oid join pg_class t on t.oid = r.prrelid
where t.relnamespace = $1::text::regnamespace

-- name: foreign_objects
-- What somebody has put into the live schema that the rebuilt one does not have.
select format('%s %I.%I', case c.relkind when 'i' then 'index' when 'v' then 'view' else 'relation' end, $1::text, c.relname)
from pg_class c
where c.relnamespace = $1::text::regnamespace and c.relkind in ('r', 'v', 'i', 'm', 'S', 'f', 'p')
  and not exists (
      select from pg_class o where o.relnamespace = $2::text::regnamespace and (o.relname, o.relkind) = (c.relname, c.relkind))
order by 1
