-- name: keep
update everyrun_queue.installation set vendor = $1 where vendor is null

-- name: kept
select vendor from everyrun_queue.installation
