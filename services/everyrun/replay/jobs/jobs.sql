-- name: lead
select pg_try_advisory_lock(hashtext('everyrun replay jobs'))

-- name: unlead
select pg_advisory_unlock(hashtext('everyrun replay jobs'))

-- name: next
-- One that is RUNNING while nobody leads was left by a process that ended.
select job_id, kind, arguments, started_at from everyrun_queue.replay_jobs
where state in ('RUNNING', 'WAITING')
order by state, created_at, job_id
limit 1

-- name: start
update everyrun_queue.replay_jobs set state = 'RUNNING', message = null where job_id = $1

-- name: begin
-- From now on a process that takes the job over goes on with it.
update everyrun_queue.replay_jobs set started_at = coalesce(started_at, now()) where job_id = $1

-- name: progress
update everyrun_queue.replay_jobs set records_done = $2, records_total = $3, rate = $4, seconds_left = $5
where job_id = $1
returning state

-- name: trouble
update everyrun_queue.replay_jobs set message = $2 where job_id = $1

-- name: end
update everyrun_queue.replay_jobs
set state = $2, outcome = $3, message = $4, seconds_left = null, ended_at = now()
where job_id = $1 and state = 'RUNNING'

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
