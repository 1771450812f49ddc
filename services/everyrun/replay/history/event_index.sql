-- name: positions
select topic, partition, next_offset, cluster_id from everyrun_index.positions

-- name: add_partition
insert into everyrun_index.positions values ($1, $2, 0, $3) on conflict do nothing

-- name: lock_position
select next_offset, cluster_id from everyrun_index.positions where (topic, partition) = ($1, $2) for update

-- name: move_position
update everyrun_index.positions set next_offset = $3 where (topic, partition) = ($1, $2)

-- name: find
select place from everyrun_index.places where id = any ($1::bigint[])
union
select unnest(places) from everyrun_index.batch_places where id = any ($2::bigint[])

-- name: index_exists
select to_regclass('everyrun_index.places') is not null
