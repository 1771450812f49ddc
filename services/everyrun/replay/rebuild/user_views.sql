-- name: user_views
-- Views that are not Everyrun's own and read the tables or views of the schema $1. A view in the schema itself is
-- Everyrun's own if the schema $2 has it too. `move` is the statement that moves such a view back, from the schema $3. A
-- view that only reads other such views is not found, and needs nothing: it refers to them, and not to their definitions.
with live as (
    select 'pg_class'::regclass as classid, oid as objid from pg_class where relnamespace = $1::text::regnamespace
    union all
    select 'pg_type'::regclass, oid from pg_type where typnamespace = $1::text::regnamespace
)
select format('%I.%I', n.nspname, v.relname) as name,
       case when v.relnamespace = $1::text::regnamespace
            then format('alter view %I.%I set schema %I', $3::text, v.relname, $1::text) end as move,
       format('create or replace view %I.%I%s as %s', n.nspname, v.relname,
              (select ' with (' || string_agg(format('%s=%L', split_part(o, '=', 1), split_part(o, '=', 2)), ', ') || ')'
               from unnest(v.reloptions) o),
              pg_get_viewdef(v.oid)) as definition,
       pg_get_userbyid(v.relowner) as owner
from pg_class v
join pg_namespace n on n.oid = v.relnamespace
where v.relkind = 'v'
  and not (v.relnamespace = $1::text::regnamespace
           and exists (
               select from pg_class o
               where o.relnamespace = $2::text::regnamespace and o.relname = v.relname and o.relkind = 'v'))
  and (v.relnamespace = $1::text::regnamespace
       or exists (
           select from pg_rewrite r join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
           join live on (live.classid, live.objid) = (d.refclassid, d.refobjid)
           where r.ev_class = v.oid and r.rulename = '_RETURN'))
order by v.oid

-- name: names_are_complete
-- Makes pg_get_viewdef write the schema of every name, until the end of the transaction.
select set_config('search_path', '', true)

-- name: wait_for_locks
select set_config('lock_timeout', $1, true)

-- name: renaming
select format('alter schema %I rename to %I', $1::text, $2::text)
