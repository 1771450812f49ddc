-- name: add
insert into everyrun_queue.replay_jobs (job_id, kind, arguments, asked_by)
values ($1, $2, $3, $4)
returning *

-- name: job
select * from everyrun_queue.replay_jobs where job_id = $1

-- name: jobs
select * from everyrun_queue.replay_jobs order by created_at desc, job_id desc limit $1

-- name: cancel
update everyrun_queue.replay_jobs set state = 'CANCELLED', seconds_left = null, ended_at = now()
where job_id = $1 and state in ('WAITING', 'RUNNING')
returning *
