-- name: something_waits
-- True if a chunk may be ready to be sent, and the sending window has room for it. $1 is the window, 0 for none.
select everyrun_queue.can_claim($1)

-- name: claim
-- The migration defines the function, and the indexes that keep it fast even if the queue is long.
select claimed as chunk, ends_at as deadline from everyrun_queue.claim($1, $2, $3, $4)

-- name: attempt
select c.chunk, c.submission_id, c.state, c.attempt, c.resends, c.deadline, c.owner, c.announced, c.batch_id, c.reason,
       c.files_lost, c.cancellation,
       c.deadline <= now() as overdue, s.workflow_id, s.workflow_version, s.priority, c.first_position, c.last_position
from everyrun_queue.chunks c join everyrun_queue.submissions s using (submission_id)
where c.chunk = $1

-- name: chunk_inputs
select coalesce(first_try, position) as position, external_id, file, metadata from everyrun_queue.inputs i
where submission_id = $1 and i.position between $2 and $3
order by i.position

-- name: still_claimed
-- Returns no row if the claim was revoked, the chunk was cancelled or the database was replaced. batch_id is set if an earlier attempt is known
-- to be accepted by now.
select batch_id from everyrun_queue.chunks
where chunk = $1 and attempt = $2 and state = 'sending' and owner = $3 and deadline = $4
  and cancellation is null and everyrun_queue.incarnation() = $5

-- name: lock_chunk
-- whole: true if the submission came through the drop-in endpoint, whose callers expect Extend's behavior.
select everyrun_queue.incarnation() as incarnation, coalesce(s.idempotency_key like 'dropin/%', false) as whole, c.chunk, c.submission_id, c.state, c.attempt, c.resends, c.deadline, c.owner, c.announced, c.batch_id, c.reason,
       c.files_lost, c.cancellation, s.workflow_id, s.workflow_version, s.priority, c.first_position, c.last_position
from everyrun_queue.chunks c join everyrun_queue.submissions s using (submission_id)
where c.chunk = $1
for update of c

-- name: store_state
update everyrun_queue.chunks
set state = $2, resends = $3, not_before = clock_timestamp() + make_interval(secs => $4), reason = $5,
    deadline = case when $2 = 'sending' then deadline else clock_timestamp() + make_interval(secs => $6) end,
    batch_id = $7, owner = case when $8 then owner end
where chunk = $1

-- name: cancellation_of
select cancellation_id, requested_by, reason from everyrun_queue.cancellations where cancellation_id = $1

-- name: lock_cancelled
-- Locks the chunks without an outcome that a cancellation contains, or that wait and have inputs of a cancellation. Locks
-- them in the order of their ids, as every statement does that locks several chunks.
select c.chunk from everyrun_queue.chunks c
where c.submission_id = any ($1::text[]) and ($2::text[] is null or c.chunk = any ($2)) and c.cancellation is null
  and c.state in ('waiting', 'sending', 'in_doubt', 'held')
  and exists (
      select from everyrun_queue.cancellations x
      where x.submission_id = c.submission_id
        and (x.positions @> int4range(c.first_position, c.last_position, '[]')
             or (c.state = 'waiting' and c.resends = 0 and c.batch_id is null
                 and x.positions && int4range(c.first_position, c.last_position, '[]'))))
order by c.chunk for update

-- name: flag_chunks
-- The step CancelRequested of the protocol, for many chunks at once. $2 is the length of a new window for evidence, in
-- seconds. $3 is the reason of chunks that are held although Extend did not accept them.
update everyrun_queue.chunks c
set cancellation = x.cancellation_id,
    state = case when c.state <> 'held' then c.state when c.reason = $3 then 'waiting' else 'in_doubt' end,
    deadline = case when c.state <> 'held' then c.deadline
                    when c.reason is distinct from $3 then clock_timestamp() + make_interval(secs => $2) end
from everyrun_queue.cancellations x
where c.chunk = any ($1::text[]) and x.submission_id = c.submission_id and c.cancellation is null
  and c.state in ('waiting', 'sending', 'in_doubt', 'held')
  and x.cancellation_id = (
      select y.cancellation_id from everyrun_queue.cancellations y
      where y.submission_id = c.submission_id
        and (y.positions @> int4range(c.first_position, c.last_position, '[]')
             or (c.state = 'waiting' and c.resends = 0 and c.batch_id is null
                 and y.positions && int4range(c.first_position, c.last_position, '[]')))
      order by y.positions @> int4range(c.first_position, c.last_position, '[]') desc, y.cancellation_id limit 1)
returning c.chunk

-- name: insert_parts
-- Inserts the parts of chunks that were cut. Skips parts of a submission that the queue does not have.
insert into everyrun_queue.chunks (chunk, submission_id, first_position, last_position, retry)
select given.c, given.s, given.f, given.l, given.r
from unnest($1::text[], $2::text[], $3::int[], $4::int[], $5::int[]) as given (c, s, f, l, r)
where exists (select from everyrun_queue.submissions s where s.submission_id = given.s)
order by given.c
on conflict do nothing
returning chunk

-- name: unresolved
-- Attempts that are sending after their deadline, and attempts that are in doubt after their window. sweeps is the
-- number of complete sweeps that began after that time.
select c.chunk, c.attempt, c.state,
       (select count(*) from everyrun_queue.sweeps w
        where w.workflow_id = s.workflow_id and w.begun_at > c.deadline) as sweeps
from everyrun_queue.chunks c join everyrun_queue.submissions s using (submission_id)
where c.state in ('sending', 'in_doubt') and c.deadline <= now()
order by c.chunk

-- name: unannounced_claims
-- Claimed chunks whose call should have begun by now, but whose batch-requested event the queue has not yet read from
-- the log. The resolver revokes these claims, and then reads the log to its end. After that, it is certain which of
-- these calls will never begin. $1 is the maximum duration of a call, in seconds.
select chunk, attempt from everyrun_queue.chunks
where state = 'sending' and announced < attempt and deadline - make_interval(secs => $1) <= now()
order by chunk

-- name: applied_up_to
select topic, partition, next_offset, cluster_id from everyrun.applied_offsets where topic = any ($1::text[])

-- name: evidence
select u.chunk, u.attempt, min(u.batch_id) as batch_id, min(u.run_id) as run_id
from everyrun.unmatched_runs u
where u.installation = $1 and u.batch_id is not null and u.reason = 'batch_unknown'
  and not exists (
      select from everyrun_queue.adopted a
      where a.chunk = u.chunk and a.attempt = u.attempt and a.batch_id = u.batch_id)
group by u.chunk, u.attempt

-- name: adopted
insert into everyrun_queue.adopted (chunk, attempt, batch_id) values ($1, $2, $3) on conflict do nothing

-- name: witness
-- A run that names the chunk but is in no known batch. Such a run proves that Extend accepted some attempt of the
-- chunk.
select run_id from (
    select run_id from everyrun.unmatched_runs where chunk = $1 and installation = $2
    union all
    select d.run_id from everyrun.deliveries d
    where d.chunk = $1
      and not exists (select from everyrun.results r where r.run_id = d.run_id)
      and not exists (select from everyrun.other_runs r where r.run_id = d.run_id)
      and not exists (select from everyrun.unmatched_runs r where r.run_id = d.run_id)
) witnesses
order by run_id limit 1
