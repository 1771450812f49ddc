-- name: bind
update everyrun_queue.installation set vendor = $1 where vendor is null

-- name: bound
select vendor from everyrun_queue.installation
