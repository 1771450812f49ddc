-- name: applied_offsets
select topic, partition, next_offset from applied_offsets
