-- name: tables
-- Columns are sorted by name, because their order differs between a schema that was migrated in steps and a new schema.
select c.relname as name,
       array_agg(a.attname::text order by a.attname) as columns,
       array_agg(format_type(a.atttypid, null) order by a.attname) as types,
       (select array_agg(k.attname::text order by array_position(i.indkey::int2[], k.attnum))
        from pg_index i join pg_attribute k on k.attrelid = i.indrelid and k.attnum = any (i.indkey::int2[])
        where i.indrelid = c.oid and i.indisprimary) as key
from pg_class c
join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relnamespace = $1::text::regnamespace and c.relkind = 'r' and c.relname <> all ($2::text[])
group by c.oid, c.relname
order by 1

-- name: buckets
-- Python replaces the names in braces with format(). The values come from the catalog.
select bucket, count(*) as rows, sha256(string_agg(digest, '' order by key)) as digest
from (
    select {key} collate "C" as key, sha256(convert_to({row}, 'UTF8')) as digest,
           hashtextextended({key}, 0) & 4095 as bucket
    from {table}
) rows
group by bucket

-- name: digests
select {key} as key, sha256(convert_to({row}, 'UTF8')) as digest
from {table} where hashtextextended({key}, 0) & 4095 = any ($1::bigint[])

-- name: keys
select {key} as key from {table} where {where}

-- name: of_submission_by_submission_id
submission_id = $1

-- name: of_submission_by_input_id
(input_id >= $1 || ':' and input_id < $1 || ';')

-- name: of_submission_by_batch_id
batch_id in (select b.batch_id from batches b where b.submission_id = $1)

-- name: of_batch_by_batch_id
batch_id = $2

-- name: of_batch_by_input_id
input_id in (select unnest(b.input_ids) from batches b where b.batch_id = $2)

-- name: between
("{time}" >= coalesce($3, '-infinity') and "{time}" < coalesce($4, 'infinity'))

-- name: rows
select {key} as __key, {columns} from {table} where {key} = any ($1::text[])
