-- name: incarnation
select everyrun_queue.incarnation()

-- name: by_idempotency_key
select submission_id, expected, batches, max_open_inputs, full_hash, content_hash, lost_inputs,
       exists (select from everyrun_queue.chunks c where c.submission_id = s.submission_id and c.retry = 0 and c.files_lost and c.state not in ('submitted', 'refused', 'cut', 'cancelled')) as files_lost
from everyrun_queue.submissions s where idempotency_key = $1

-- name: lock_by_idempotency_key
select submission_id from everyrun_queue.submissions where idempotency_key = $1 for update

-- name: lock_key
-- The lock is held until the end of the transaction.
select pg_advisory_xact_lock(hashtextextended('everyrun_queue.key/' || $1::text, 0))

-- name: recent_key
select idempotency_key from everyrun_queue.submissions where idempotency_key = $1 and created_at > $2

-- name: lock_content
-- The lock is held until the end of the transaction. If two equal uploads are accepted at once, the second waits for
-- the lock, and then finds the submission of the first.
select pg_advisory_xact_lock(hashtextextended('everyrun_queue.content/' || encode($1::bytea, 'hex'), 0))

-- name: submitted_before
-- A submission that was restored from the log has no full_hash, so the redacted content_hash decides.
select submission_id, expected, created_at from everyrun_queue.submissions
where content_hash = $2 and (full_hash = $1 or full_hash is null) and registered_batch is null
order by created_at desc limit 1

-- name: insert_submission
insert into everyrun_queue.submissions
    (submission_id, workflow_id, workflow_version, priority, expected, batches, idempotency_key, full_hash, content_hash, created_at,
     max_open_inputs)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)

-- name: insert_chunks
insert into everyrun_queue.chunks (chunk, submission_id, first_position, last_position)
select c, $1, f, l from unnest($2::text[], $3::int[], $4::int[]) as given (c, f, l)

-- name: duplicate_ids
-- The first hundred rows that repeat the id of an earlier row. first: the position of that earlier row. duplicates: the
-- total number of rows that repeat an id.
with repeated as (
    select external_id, min(position) as first, count(*) - 1 as more
    from everyrun_queue.inputs where submission_id = $1
    group by external_id having count(*) > 1
)
select i.position, i.external_id, repeated.first, (select sum(more)::bigint from repeated) as duplicates
from repeated join everyrun_queue.inputs i on i.submission_id = $1 and i.external_id = repeated.external_id
where i.position <> repeated.first
order by i.position limit 100

-- name: refill_files
-- Replaces the files of chunks that lost them. $1 is the submission, $2 the id under which the repeated upload was
-- copied.
update everyrun_queue.inputs known
set file = given.file
from everyrun_queue.chunks c, everyrun_queue.inputs given
where c.submission_id = $1 and c.retry = 0 and c.files_lost and c.state not in ('submitted', 'refused', 'cut', 'cancelled')
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
select chunk, first_position, last_position from everyrun_queue.chunks where submission_id = $1 and retry = 0
order by first_position, last_position

-- name: sizes_of
-- The sizes, in bytes, from which size_in_batch (rows.py) computes the size of an input in a batch.
select octet_length(file) + octet_length(metadata) as content, octet_length(external_id) as external_id
from everyrun_queue.inputs where submission_id = $1 and position between $2 and $3 order by position

-- name: lock_files_lost
select chunk, state, attempt, resends, batch_id, reason, files_lost, cancellation, owner, announced, first_position, last_position
from everyrun_queue.chunks where submission_id = $1 and retry = 0 and files_lost order by chunk for update

-- name: refill_chunks
-- A chunk that is in doubt again gets no new window for evidence: it waits only for sweeps.
update everyrun_queue.chunks c
set files_lost = false, state = given.state, reason = given.reason,
    deadline = case when given.state = 'in_doubt' and c.state = 'held' then least(c.deadline, clock_timestamp())
                    else c.deadline end
from unnest($1::text[], $2::text[], $3::text[]) as given (chunk, state, reason)
where c.chunk = given.chunk

-- name: mark_refilled
update everyrun_queue.submissions set lost_inputs = 0, full_hash = $2, content_hash = $3 where submission_id = $1

-- name: registered
select submission_id, expected, content_hash from everyrun_queue.submissions where registered_batch = $1

-- name: batch_is_known
-- True if this installation sent the batch: the queue or the log knows it, or it has an unmatched run of this
-- installation.
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
values ($1, $2, 1, $3, 'submitted', 1, $4)
on conflict do nothing

-- name: lock_source
-- The lock is held until the end of the transaction, so that two syncs of a source store their objects one after the
-- other.
select pg_advisory_xact_lock(hashtextextended('everyrun_queue.synced_objects/' || $2 || '/' || $1, 0))

-- name: insert_synced
-- Returns the number of objects that were not known before.
with given as (
    select i.external_id, g.version
    from unnest($4::int[], $5::text[]) as g (position, version)
    join everyrun_queue.inputs i on i.submission_id = $3 and i.position = g.position
), stored as (
    insert into everyrun_queue.synced_objects (source, workflow_id, object, version, submission_id)
    select $1, $2, external_id, version, $3 from given
    on conflict do nothing
    returning 1
)
select count(*) from stored

-- name: update_synced
-- Returns the number of objects of which the known version ($6) was right.
with given as (
    select i.external_id, g.version, g.was
    from unnest($4::int[], $5::text[], $6::text[]) as g (position, version, was)
    join everyrun_queue.inputs i on i.submission_id = $3 and i.position = g.position
), stored as (
    update everyrun_queue.synced_objects known
    set version = given.version, submission_id = $3
    from given
    where known.source = $1 and known.workflow_id = $2 and known.object = given.external_id and known.version = given.was
    returning 1
)
select count(*) from stored

-- name: mark_synced
update everyrun_queue.submissions set synced_source = $2 where submission_id = $1
