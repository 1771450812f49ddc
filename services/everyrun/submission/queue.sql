-- name: installation
select installation from everyrun_queue.installation

-- name: by_idempotency_key
select submission_id, expected, batches, full_hash, content_hash, lost_inputs,
       exists (select from everyrun_queue.chunks c where c.submission_id = s.submission_id and c.files_lost and c.state not in ('sent', 'refused', 'cut')) as files_lost
from everyrun_queue.submissions s where idempotency_key = $1

-- name: lock_by_idempotency_key
select submission_id from everyrun_queue.submissions where idempotency_key = $1 for update

-- name: lock_content
-- Until the end of the transaction: of two that bring the same at once the second sees the first.
select pg_advisory_xact_lock(hashtextextended('everyrun_queue.content/' || encode($1::bytea, 'hex'), 0))

-- name: submitted_before
-- Of a submission that was put back from the log only what the log shows is known.
select submission_id, expected, created_at from everyrun_queue.submissions
where content_hash = $2 and (full_hash = $1 or full_hash is null) and registered_batch is null
order by created_at desc limit 1

-- name: insert_submission
insert into everyrun_queue.submissions
    (submission_id, workflow_id, workflow_version, priority, expected, batches, idempotency_key, full_hash, content_hash, created_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)

-- name: insert_chunks
insert into everyrun_queue.chunks (chunk, submission_id, first_position, last_position)
select c, $1, f, l from unnest($2::text[], $3::int[], $4::int[]) as given (c, f, l)

-- name: insert_parts
-- Of chunks that were cut. One of a submission that the queue has lost has no place here.
insert into everyrun_queue.chunks (chunk, submission_id, first_position, last_position)
select given.c, given.s, given.f, given.l
from unnest($1::text[], $2::text[], $3::int[], $4::int[]) as given (c, s, f, l)
where exists (select from everyrun_queue.submissions s where s.submission_id = given.s)
order by given.c
on conflict do nothing
returning chunk

-- name: ids_twice
-- The first hundred rows whose id an earlier row has, with that row, and how many there are in all.
with again as (
    select external_id, min(position) as first, count(*) - 1 as more
    from everyrun_queue.inputs where submission_id = $1
    group by external_id having count(*) > 1
)
select i.position, i.external_id, again.first, (select sum(more)::bigint from again) as twice
from again join everyrun_queue.inputs i on i.submission_id = $1 and i.external_id = again.external_id
where i.position <> again.first
order by i.position limit 100

-- name: unannounced
select submission_id, workflow_id, workflow_version, priority, expected, batches, idempotency_key, content_hash,
       created_at, registered_batch
from everyrun_queue.submissions where announced_at is null and submission_id <> all ($1::text[])
order by created_at limit 100

-- name: mark_announced
update everyrun_queue.submissions set announced_at = now() where submission_id = $1

-- name: submissions
select s.submission_id, s.workflow_id, s.workflow_version, s.priority, s.expected, s.batches, s.created_at,
       s.registered_batch, s.idempotency_key, s.lost_inputs, coalesce(c.lost_files, 0) as lost_files, coalesce(c.states, '{}') as chunks, coalesce(p.reason, own.reason) as paused, c.retry_at,
       c.reasons
from everyrun_queue.submissions s
left join lateral (
    select jsonb_object_agg(state, n) as states, max(retry_at) as retry_at, sum(lost_files)::bigint as lost_files,
           array_remove(array_agg(distinct reason), null) as reasons
    from (
        select state, count(*) as n, sum(last_position - first_position + 1) filter (where files_lost and state = 'held') as lost_files,
               min(not_before) filter (where state = 'waiting' and not_before > now()) as retry_at,
               max(reason) filter (where state in ('in_doubt', 'held', 'refused')) as reason
        from everyrun_queue.chunks where submission_id = s.submission_id group by state
    ) by_state
) c on true
left join everyrun_queue.paused p on p.kind = 'workflow' and p.id = s.workflow_id
left join everyrun_queue.paused own on own.kind = 'submission' and own.id = s.submission_id
where ($1::text is null or s.submission_id = $1) and ($2::text is null or s.submission_id < $2)
order by s.submission_id desc
limit $3

-- name: something_waits
-- In the order of an index: where much waits, Postgres would take the whole table for the shorter way to one row.
select (select chunk from everyrun_queue.chunks
        where state = 'waiting' and not aside and not_before = '-infinity' order by chunk limit 1) is not null
    or coalesce((select not_before from everyrun_queue.chunks
                 where state = 'waiting' and not_before > '-infinity' order by not_before limit 1) <= now(), false)

-- name: claim
-- The function is in the migration, beside the indexes that keep its cost the same however long the queue is.
select claimed as chunk, ends_at as deadline from everyrun_queue.claim($1, $2, $3)

-- name: incarnation
select everyrun_queue.incarnation()

-- name: still_claimed
-- In a database that was replaced meanwhile it is not. batch_id: an earlier attempt is known by now to have been taken.
select batch_id from everyrun_queue.chunks
where chunk = $1 and attempt = $2 and state = 'sending' and owner = $3 and deadline = $4
  and everyrun_queue.incarnation() = $5

-- name: attempt
select c.chunk, c.submission_id, c.state, c.attempt, c.resends, c.deadline, c.owner, c.announced, c.batch_id, c.reason,
       c.files_lost,
       c.deadline <= now() as overdue, s.workflow_id, s.workflow_version, s.priority, c.first_position, c.last_position
from everyrun_queue.chunks c join everyrun_queue.submissions s using (submission_id)
where c.chunk = $1

-- name: chunk_inputs
select position, external_id, file, metadata from everyrun_queue.inputs
where submission_id = $1 and position between $2 and $3
order by position

-- name: lock_chunk
select everyrun_queue.incarnation() as incarnation, c.chunk, c.submission_id, c.state, c.attempt, c.resends, c.deadline, c.owner, c.announced, c.batch_id, c.reason,
       c.files_lost, s.workflow_id, s.workflow_version, s.priority, c.first_position, c.last_position
from everyrun_queue.chunks c join everyrun_queue.submissions s using (submission_id)
where c.chunk = $1
for update of c

-- name: doubts
-- Chunks that wait for evidence or for a person; how many sweeps begun after the window are complete.
select c.chunk, c.submission_id, s.workflow_id, c.state, c.attempt, c.resends, c.reason, c.batch_id, c.files_lost,
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
       -- What has rows in the tables is told by the tables (everyrun_queue.unsent).
       and not exists (
           select from everyrun.batches b where b.chunk = c.chunk and b.state in ('SUBMITTED', 'SETTLED', 'REFUSED')))
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
  and not exists (select from everyrun.duplicate_runs r where r.run_id = d.run_id)
order by first_seen, run_id
limit 20

-- name: decisions_of
select kind, attempt, batch_id, decided_by, reason, decided_at from everyrun.decisions where chunk = $1 order by decided_at

-- name: batch_known
select chunk, attempt from everyrun.batches where batch_id = $1
union all
select chunk, null from everyrun_queue.chunks where batch_id = $1 and state = 'sent'
limit 1

-- name: pauses
select kind, id, reason, decided_by, since from everyrun_queue.paused
where kind = $1 and ($2::text is null or id > $2) order by id limit $3

-- name: workflow_known
select exists (select from everyrun_queue.submissions where workflow_id = $1)

-- name: submission_known
select exists (select from everyrun_queue.submissions where submission_id = $1)

-- name: stopped_inputs
-- Inputs of a submission or a workflow ($1, $2) without a result, by what they wait for. Those whose links were taken
-- out of the queue cannot be sent, though no claim may have found that yet.
select case when u.waits_for in ('queued', 'retry') and s.redacted_at is not null and exists (
                select from everyrun_queue.inputs i
                where i.submission_id = u.submission_id and i.position between u.first_position and u.last_position
                  and i.file like '%"redacted":true}') then 'secrets_removed'
            else u.waits_for end as waits_for,
       sum(u.inputs)::bigint as inputs
from everyrun_queue.unsent(case when $1 = 'submission' then $2::text end) u
left join everyrun_queue.submissions s using (submission_id)
where $1 = 'submission' or u.workflow_id = $2
group by 1

-- name: sent_inputs
select coalesce(sum(c.last_position - c.first_position + 1), 0)::bigint
from everyrun_queue.submissions s join everyrun_queue.chunks c using (submission_id)
where c.state = 'sent' and case when $1 = 'submission' then s.submission_id else s.workflow_id end = $2

-- name: workflow_of
select workflow_id from everyrun_queue.submissions where submission_id = $1

-- name: keep
update everyrun_queue.chunks
set state = $2, resends = $3, not_before = clock_timestamp() + make_interval(secs => $4), reason = $5,
    deadline = case when $2 = 'sending' then deadline else clock_timestamp() + make_interval(secs => $6) end,
    batch_id = $7, owner = case when $8 then owner end
where chunk = $1

-- name: unresolved
-- Of attempts in doubt the window for evidence is over; how many sweeps begun since are complete.
select c.chunk, c.attempt, c.state,
       (select count(*) from everyrun_queue.sweeps w
        where w.workflow_id = s.workflow_id and w.begun_at > c.deadline) as sweeps
from everyrun_queue.chunks c join everyrun_queue.submissions s using (submission_id)
where c.state in ('sending', 'in_doubt') and c.deadline <= now()
order by c.chunk

-- name: unannounced_claims
-- Chunks that are claimed and have not begun a call in the time for it, as far as the queue has read the log. Once the
-- claim is taken away and the log read to its end, it is known which of them never begin one. $1: a call's time.
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
-- A run that names the chunk and is in no batch that is known: it was taken, whichever attempt it was.
select run_id from (
    select run_id from everyrun.unmatched_runs where chunk = $1 and installation = $2
    union all
    select d.run_id from everyrun.deliveries d
    where d.chunk = $1
      and not exists (select from everyrun.results r where r.run_id = d.run_id)
      and not exists (select from everyrun.duplicate_runs r where r.run_id = d.run_id)
      and not exists (select from everyrun.unmatched_runs r where r.run_id = d.run_id)
) witnesses
order by run_id limit 1

-- name: is_paused
select true from everyrun_queue.paused where kind = $1 and id = $2

-- name: pause
insert into everyrun_queue.paused (kind, id, reason, decided_by, since) values ($1, $2, $3, $4, $5)
on conflict (kind, id) do update set reason = excluded.reason, decided_by = excluded.decided_by, since = excluded.since

-- name: resume
delete from everyrun_queue.paused where kind = $1 and id = $2

-- name: positions
select partition, next_offset, cluster_id from everyrun_queue.log_position

-- name: move_position
insert into everyrun_queue.log_position (partition, next_offset, cluster_id) values ($1, $2, $3)
on conflict (partition) do update set next_offset = excluded.next_offset, cluster_id = excluded.cluster_id

-- name: lock_chunks
select chunk, state, attempt, resends, batch_id, reason, files_lost, deadline, owner, announced, first_position, last_position
from everyrun_queue.chunks where chunk = any ($1::text[])
order by chunk
for update

-- name: take_over
update everyrun_queue.chunks c
set state = given.state, attempt = given.attempt, resends = given.resends, batch_id = given.batch_id,
    reason = given.reason, announced = case when given.announced then given.attempt else c.announced end,
    owner = case when given.claimed then c.owner end,
    deadline = case when given.state in ('in_doubt', 'held') then clock_timestamp() + make_interval(secs => $10)
                    else given.deadline end
from unnest($1::text[], $2::text[], $3::int[], $4::int[], $5::text[], $6::text[], $7::timestamptz[], $8::bool[],
            $9::bool[])
     as given (chunk, state, attempt, resends, batch_id, reason, deadline, claimed, announced)
where c.chunk = given.chunk

-- name: to_redact
select submission_id, expected, created_at, now() as now from everyrun_queue.submissions
where redact_after <= now() order by redact_after limit 1000

-- name: all_settled_at
-- When the last chunk of a submission settled; null while one is not settled. Each chunk counts once, however often it
-- was taken: it is settled when an attempt is, and no other that was taken is still open. A chunk that was cut is not
-- counted; the chunks that it was cut into are.
select case when bool_and(settled_at is not null) then max(settled_at) end
from (
    select (select max(b.settled_at) from everyrun.batches b
            where b.chunk = c.chunk and b.state in ('SETTLED', 'REFUSED') and c.state in ('sent', 'refused')
              and not exists (select from everyrun.batches o where o.chunk = c.chunk and o.state = 'SUBMITTED')
           ) as settled_at
    from everyrun_queue.chunks c where c.submission_id = $1 and c.state <> 'cut'
) each_chunk

-- name: look_again
update everyrun_queue.submissions set redact_after = $2 where submission_id = $1

-- name: begin_redaction
update everyrun_queue.submissions set redacted_at = coalesce(redacted_at, now()) where submission_id = $1

-- name: has_unsent
select exists (
    select from everyrun_queue.chunks where submission_id = $1 and state in ('waiting', 'sending', 'in_doubt', 'held'))

-- name: files
-- Without those that are a text, which may be long: they hold nothing to redact.
select position, file from everyrun_queue.inputs
where submission_id = $1 and position between $2 and $3 and file not like '{"text":%'

-- name: redact_inputs
update everyrun_queue.inputs i set file = given.file
from unnest($2::int[], $3::text[]) as given (position, file)
where i.submission_id = $1 and i.position = given.position

-- name: mark_redacted
update everyrun_queue.submissions set redact_after = null where submission_id = $1

-- name: registered
select submission_id, expected, content_hash from everyrun_queue.submissions where registered_batch = $1

-- name: batch_is_known
-- Sent by this installation, as the queue knows, or the log, or a run that names it though its call had no answer.
select exists (select from everyrun_queue.chunks where batch_id = $1)
    or exists (select from everyrun_queue.adopted where batch_id = $1)
    or exists (select from everyrun.batches where batch_id = $1)
    or exists (select from everyrun.unmatched_runs u join everyrun_queue.installation i using (installation)
               where u.batch_id = $1)

-- name: insert_registered
insert into everyrun_queue.submissions
    (submission_id, workflow_id, workflow_version, expected, batches, registered_batch, content_hash, created_at, announced_at)
values ($1, $2, $3, $4, 1, $5, $6, $7, $8)
on conflict do nothing

-- name: insert_registered_chunk
insert into everyrun_queue.chunks (chunk, submission_id, first_position, last_position, state, attempt, batch_id)
values ($1, $2, 1, $3, 'sent', 1, $4)
on conflict do nothing

-- name: quarantined
select source, topic, partition, "offset", key, raw, headers, first_seen from everyrun.quarantine where source = $1

-- name: quarantine_state
select state from everyrun.quarantine where source = $1

-- name: chunks_by_state
select state, count(*) as chunks from everyrun_queue.chunks
where state in ('waiting', 'sending', 'in_doubt', 'held') group by state

-- name: count_paused_workflows
select count(*) from everyrun_queue.paused where kind = 'workflow'

-- name: lock_restoring
-- One process at a time puts back what the queue lost.
select pg_advisory_xact_lock(hashtextextended('everyrun_queue.restoring', 0))

-- name: nothing_missing
-- Whether the queue has all of these submissions, and all of these chunks.
select not exists (
    select from unnest($1::text[]) as given (submission_id)
    where not exists (select from everyrun_queue.submissions s where s.submission_id = given.submission_id))
and not exists (
    select from unnest($2::text[]) as given (chunk)
    where not exists (select from everyrun_queue.chunks c where c.chunk = given.chunk))

-- name: chunks_missing
select given.chunk from unnest($1::text[]) as given (chunk)
where not exists (select from everyrun_queue.chunks c where c.chunk = given.chunk)

-- name: submissions_known
select submission_id from everyrun_queue.submissions where submission_id = any ($1::text[])

-- name: restore_submission
-- The key is left out where the same upload was taken in again meanwhile: the key then leads to that one.
insert into everyrun_queue.submissions
    (submission_id, workflow_id, workflow_version, priority, expected, batches, content_hash, created_at, announced_at,
     idempotency_key)
select $1, $2, $3, $4, $5, $6, $7, $8, $8,
       case when not exists (select from everyrun_queue.submissions where idempotency_key = $9) then $9 end
on conflict (submission_id) do nothing

-- name: restore_chunk
insert into everyrun_queue.chunks (chunk, submission_id, first_position, last_position) values ($1, $2, $3, $4)
on conflict do nothing

-- name: restore_inputs
insert into everyrun_queue.inputs (submission_id, position, external_id, file, metadata)
select $1, p, e, f, m from unnest($2::int[], $3::text[], $4::text[], $5::text[]) as given (p, e, f, m)
on conflict (submission_id, position) do nothing

-- name: hold_lost_files
-- Of chunks that were put back: those whose files the log shows only in part, which nobody may claim as they are.
update everyrun_queue.chunks c
set files_lost = true, state = case when c.state = 'waiting' then 'held' else c.state end,
    reason = case when c.state = 'waiting' then $2 else c.reason end
where c.chunk = any ($1::text[]) and exists (
    select from everyrun_queue.inputs i
    where i.submission_id = c.submission_id and i.position between c.first_position and c.last_position
      and i.file::json ->> 'redacted' = 'true')

-- name: count_lost
update everyrun_queue.submissions s
set lost_inputs = expected - (select count(*) from everyrun_queue.inputs i where i.submission_id = s.submission_id)
where submission_id = any ($1::text[]) and registered_batch is null

-- name: refill_files
-- $1 is the submission, $2 the one under which the repeated upload was copied.
update everyrun_queue.inputs known
set file = given.file
from everyrun_queue.chunks c, everyrun_queue.inputs given
where c.submission_id = $1 and c.files_lost and c.state not in ('sent', 'refused', 'cut')
  and known.submission_id = $1 and known.position between c.first_position and c.last_position
  and given.submission_id = $2 and given.position = known.position

-- name: refill_inputs
update everyrun_queue.inputs given
set submission_id = $1
where given.submission_id = $2
  and not exists (
      select from everyrun_queue.inputs known where known.submission_id = $1 and known.position = given.position)

-- name: drop_copied
delete from everyrun_queue.inputs where submission_id = $1

-- name: ranges_of
select chunk, first_position, last_position from everyrun_queue.chunks where submission_id = $1
order by first_position, last_position

-- name: sizes_of
-- As check_row counts the bytes of an input in a batch.
select octet_length(file) + octet_length(metadata) as content, octet_length(external_id) as external_id
from everyrun_queue.inputs where submission_id = $1 and position between $2 and $3 order by position

-- name: lock_files_lost
select chunk, state, attempt, resends, batch_id, reason, files_lost, owner, announced, first_position, last_position
from everyrun_queue.chunks where submission_id = $1 and files_lost order by chunk for update

-- name: refill_chunks
-- The window of a doubt that goes on is over: only sweeps are waited for.
update everyrun_queue.chunks c
set files_lost = false, state = given.state, reason = given.reason,
    deadline = case when given.state = 'in_doubt' and c.state = 'held' then least(c.deadline, clock_timestamp())
                    else c.deadline end
from unnest($1::text[], $2::text[], $3::text[]) as given (chunk, state, reason)
where c.chunk = given.chunk

-- name: refilled
update everyrun_queue.submissions set lost_inputs = 0, full_hash = $2, content_hash = $3 where submission_id = $1

-- name: revoke_token
update everyrun_queue.tokens
set revoked_at = coalesce(revoked_at, $2), revoked_by = coalesce(revoked_by, $3),
    revoked_reason = coalesce(revoked_reason, $4), revoked_announced_at = coalesce(revoked_announced_at, now())
where token_id = $1

-- name: tokens_are_level
update everyrun_queue.tokens_level set incarnation = everyrun_queue.incarnation()
where incarnation is distinct from everyrun_queue.incarnation()

-- name: unannounced_tokens
select token_id, name, scopes, created_at, created_by, expires_at, revoked_at, revoked_by, revoked_reason,
       created_announced_at, revoked_announced_at
from everyrun_queue.tokens
where created_announced_at is null or (revoked_at is not null and revoked_announced_at is null)
order by token_id limit 100

-- name: mark_token_announced
update everyrun_queue.tokens
set created_announced_at = coalesce(created_announced_at, now()),
    revoked_announced_at = case when $2 then coalesce(revoked_announced_at, now()) else revoked_announced_at end
where token_id = $1
