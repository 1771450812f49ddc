-- name: applied_offsets
select topic, partition, next_offset, cluster_id, partitions from applied_offsets

-- name: same_texts
-- With these settings, both sessions write equal values as equal text.
select set_config('timezone', 'UTC', false), set_config('datestyle', 'ISO', false),
       set_config('extra_float_digits', '1', false), set_config('bytea_output', 'hex', false)
