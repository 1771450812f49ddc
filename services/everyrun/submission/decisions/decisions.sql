-- name: doubts
-- If $1 is null: the chunks in doubt or held. Otherwise: the chunk $1, in any state. sweeps is the number of complete
-- sweeps that began after the end of the window for evidence.
select c.chunk, c.submission_id, s.workflow_id, c.state, c.attempt, c.resends, c.reason, c.batch_id, c.files_lost, c.cancellation,
       s.idempotency_key,
       c.deadline as window_ends, c.last_position - c.first_position + 1 as inputs, now() as now,
       (select count(*) from everyrun_queue.sweeps w
        where w.workflow_id = s.workflow_id and w.begun_at > c.deadline) as sweeps,
       (select count(*) from everyrun.unmatched_runs u where u.chunk = c.chunk) as runs
from everyrun_queue.chunks c join everyrun_queue.submissions s using (submission_id)
where ($1::text is null or c.chunk = $1)
  and ($2::text is null or c.submission_id = $2)
  and ($3::text is null or c.state = $3)
  and ($4::text is null or c.chunk > $4)
  and ($1::text is not null
       or c.state in ('in_doubt', 'held')
       -- Leave out chunks whose outcome is known from the result tables, as everyrun_queue.unsent does.
       and not exists (
           select from everyrun.batches b where b.chunk = c.chunk and b.state in ('SUBMITTED', 'SETTLED', 'REFUSED', 'CANCELLED')))
order by c.chunk
limit $5

-- name: attempts_of
select attempt, state, batch_id, reason, requested_at, in_doubt_at, resent_at, returned_at, rejected_at, submitted_at
from everyrun.batches where chunk = $1 order by attempt

-- name: runs_naming
select run_id, batch_id, attempt, status, reason, first_seen from everyrun.unmatched_runs where chunk = $1
union all
select d.run_id, null, d.attempt, 'unknown', 'payload not fetched yet', d.first_seen
from everyrun.deliveries d
where d.chunk = $1 and not exists (select from everyrun.unmatched_runs u where u.run_id = d.run_id)
  and not exists (select from everyrun.results r where r.run_id = d.run_id)
  and not exists (select from everyrun.other_runs r where r.run_id = d.run_id)
order by first_seen, run_id
limit 20

-- name: decisions_of
select kind, attempt, batch_id, decided_by, reason, decided_at from everyrun.decisions where chunk = $1 order by decided_at

-- name: batch_known
select chunk, attempt from everyrun.batches where batch_id = $1
union all
select chunk, null from everyrun_queue.chunks where batch_id = $1 and state = 'submitted'
limit 1

-- name: is_paused
select true from everyrun_queue.paused where kind = $1 and id = $2

-- name: pause
insert into everyrun_queue.paused (kind, id, reason, decided_by, since) values ($1, $2, $3, $4, $5)
on conflict (kind, id) do update set reason = excluded.reason, decided_by = excluded.decided_by, since = excluded.since

-- name: resume
delete from everyrun_queue.paused where kind = $1 and id = $2

-- name: quarantined
select source, topic, partition, "offset", key, raw, headers, first_seen from everyrun.quarantine where source = $1

-- name: quarantine_state
select state from everyrun.quarantine where source = $1
