-- name: keep
insert into everyrun_queue.published_offsets as known (topic, partition, next_offset, cluster_id)
select t, p, o, $4 from unnest($1::text[], $2::int[], $3::bigint[]) as given (t, p, o)
on conflict (topic, partition) do update
set next_offset = case when known.cluster_id = excluded.cluster_id
                       then greatest(known.next_offset, excluded.next_offset) else excluded.next_offset end,
    cluster_id = excluded.cluster_id

-- name: kept
select p.topic, p.partition, least(p.next_offset, a.next_offset) as next_offset
from everyrun_queue.published_offsets p
join everyrun.applied_offsets a using (topic, partition, cluster_id)
where p.cluster_id = $1
