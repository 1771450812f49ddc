-- name: incarnation
select everyrun_queue.incarnation()

-- name: positions
select partition, next_offset, cluster_id from everyrun_queue.log_position

-- name: move_position
insert into everyrun_queue.log_position (partition, next_offset, cluster_id) values ($1, $2, $3)
on conflict (partition) do update set next_offset = excluded.next_offset, cluster_id = excluded.cluster_id

-- name: lock_chunks
select chunk, state, attempt, resends, batch_id, reason, files_lost, cancellation, deadline, owner, announced, first_position, last_position
from everyrun_queue.chunks where chunk = any ($1::text[])
order by chunk
for update

-- name: store_merged
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

-- name: lock_restoring
-- Only one process at a time restores what the queue lost.
select pg_advisory_xact_lock(hashtextextended('everyrun_queue.restoring', 0))

-- name: nothing_missing
-- True if the queue has all of these submissions and all of these chunks.
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
-- The Idempotency-Key is left out if another submission has it by now, which happens if the upload was repeated before
-- the recovery. The key then belongs to the submission of the repeated upload.
insert into everyrun_queue.submissions
    (submission_id, workflow_id, workflow_version, priority, expected, batches, content_hash, created_at, announced_at,
     idempotency_key, max_open_inputs, synced_source)
select $1, $2, $3, $4, $5, $6, $7, $8, $8,
       case when not exists (select from everyrun_queue.submissions where idempotency_key = $9) then $9 end, $10, $11
on conflict (submission_id) do nothing

-- name: restore_chunk
insert into everyrun_queue.chunks (chunk, submission_id, first_position, last_position, retry) values ($1, $2, $3, $4, $5)
on conflict do nothing

-- name: restore_inputs
insert into everyrun_queue.inputs (submission_id, position, first_try, external_id, file, metadata)
select $1, p, t, e, f, m from unnest($2::int[], $3::int[], $4::text[], $5::text[], $6::text[]) as given (p, t, e, f, m)
on conflict (submission_id, position) do nothing

-- name: restore_synced
-- Remembers the restored objects of a sync again. A version that a later submission has is newer. The log has no version
-- of a file of a folder.
insert into everyrun_queue.synced_objects as known (source, workflow_id, object, version, submission_id)
select s.synced_source, s.workflow_id, i.external_id, i.file::json ->> 'etag', s.submission_id
from everyrun_queue.submissions s join everyrun_queue.inputs i on i.submission_id = s.submission_id
where s.submission_id = $1 and s.synced_source is not null and i.position = any ($2::int[])
  and i.file::json ->> 'etag' is not null
order by i.external_id
on conflict (source, workflow_id, object) do update
set version = excluded.version, submission_id = excluded.submission_id
where known.submission_id < excluded.submission_id

-- name: hold_lost_files
-- Holds restored chunks whose files are redacted in the log, because redacted files cannot be sent.
update everyrun_queue.chunks c
set files_lost = true, state = case when c.state = 'waiting' then 'held' else c.state end,
    reason = case when c.state = 'waiting' then $2 else c.reason end
where c.chunk = any ($1::text[]) and exists (
    select from everyrun_queue.inputs i
    where i.submission_id = c.submission_id and i.position between c.first_position and c.last_position
      and i.file::json ->> 'redacted' = 'true')

-- name: count_lost
update everyrun_queue.submissions s
set lost_inputs = expected - (
    select count(*) from everyrun_queue.inputs i where i.submission_id = s.submission_id and i.first_try is null)
where submission_id = any ($1::text[]) and registered_batch is null

-- name: revoke_token
update everyrun_queue.tokens
set revoked_at = coalesce(revoked_at, $2), revoked_by = coalesce(revoked_by, $3),
    revoked_reason = coalesce(revoked_reason, $4), revoked_announced_at = coalesce(revoked_announced_at, now())
where token_id = $1

-- name: mark_tokens_caught_up
update everyrun_queue.token_recovery set incarnation = everyrun_queue.incarnation()
where incarnation is distinct from everyrun_queue.incarnation()

-- name: restore_retry
insert into everyrun_queue.retries (submission_id, retry, inputs, chosen, requested_by, reason, created_at)
select $1, $2, $3, $4::text::jsonb, $5, $6, $7
where exists (select from everyrun_queue.submissions s where s.submission_id = $1)
on conflict do nothing
