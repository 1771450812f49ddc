-- name: try_lead
select pg_try_advisory_lock(hashtext('everyrun replay jobs'))

-- name: stop_leading
select pg_advisory_unlock(hashtext('everyrun replay jobs'))

-- name: next
-- Only the leader runs this query, and only between two jobs. So if a job is RUNNING, the process that ran it has
-- ended. This job is resumed before any other job is started: RUNNING sorts before WAITING.
select job_id, kind, arguments, started_at from everyrun_queue.replay_jobs
where state in ('RUNNING', 'WAITING')
order by state, created_at, job_id
limit 1

-- name: run
update everyrun_queue.replay_jobs set state = 'RUNNING', message = null where job_id = $1

-- name: mark_started
-- If this process ends after this statement, the next process resumes the job instead of starting it again.
update everyrun_queue.replay_jobs set started_at = coalesce(started_at, now()) where job_id = $1

-- name: report_progress
update everyrun_queue.replay_jobs set records_done = $2, records_total = $3, rate = $4, seconds_left = $5
where job_id = $1
returning state

-- name: set_message
update everyrun_queue.replay_jobs set message = $2 where job_id = $1

-- name: end
update everyrun_queue.replay_jobs
set state = $2, outcome = $3, message = $4, seconds_left = null, ended_at = now()
where job_id = $1 and state = 'RUNNING'
