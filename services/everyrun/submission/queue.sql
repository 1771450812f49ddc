-- name: installation
select installation from everyrun_queue.installation

-- name: unannounced
select submission_id, workflow_id, workflow_version, priority, expected, batches, idempotency_key, content_hash,
       created_at, registered_batch, max_open_inputs, synced_source, x.retries, x.retry_reasons, x.stop_after_failures
from everyrun_queue.submissions left join everyrun_queue.rules x using (submission_id)
where announced_at is null and submission_id <> all ($1::text[])
order by created_at limit 100

-- name: mark_announced
update everyrun_queue.submissions set announced_at = now() where submission_id = $1

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

-- name: to_redact
select submission_id, created_at, now() as now,
       coalesce((select max(i.position) from everyrun_queue.inputs i where i.submission_id = s.submission_id), 0)
           as last_position
from everyrun_queue.submissions s
where redact_after <= now() order by redact_after limit 1000

-- name: all_settled_at
-- The time when the last chunk of a submission settled; null while a chunk is not settled. A chunk counts once, even if
-- Extend accepted several of its attempts. It is settled if it was cancelled, or at least one attempt was accepted or refused, and all
-- accepted attempts are settled. A chunk that was cut does not count; its parts do.
select case when bool_and(settled_at is not null) then max(settled_at) end
from (
    select (select max(b.settled_at) from everyrun.batches b
            where b.chunk = c.chunk and b.state in ('SETTLED', 'REFUSED', 'CANCELLED')
              and c.state in ('submitted', 'refused', 'cancelled')
              and not exists (select from everyrun.batches o where o.chunk = c.chunk and o.state = 'SUBMITTED')
           ) as settled_at
    from everyrun_queue.chunks c where c.submission_id = $1 and c.state <> 'cut'
) each_chunk

-- name: postpone_redaction
update everyrun_queue.submissions set redact_after = $2 where submission_id = $1

-- name: begin_redaction
update everyrun_queue.submissions set redacted_at = coalesce(redacted_at, now()) where submission_id = $1

-- name: has_unsubmitted
select exists (
    select from everyrun_queue.chunks where submission_id = $1 and state in ('waiting', 'sending', 'in_doubt', 'held'))

-- name: files
-- Skips files that were given as text: they may be long, and there is nothing to redact in them.
select position, file from everyrun_queue.inputs
where submission_id = $1 and position between $2 and $3 and file not like '{"text":%'

-- name: redact_inputs
update everyrun_queue.inputs i set file = given.file
from unnest($2::int[], $3::text[]) as given (position, file)
where i.submission_id = $1 and i.position = given.position

-- name: mark_redacted
update everyrun_queue.submissions set redact_after = null where submission_id = $1

-- name: chunks_by_state
select state, count(*) as chunks from everyrun_queue.chunks
where state in ('waiting', 'sending', 'in_doubt', 'held') group by state

-- name: count_settled
select everyrun_queue.count_settled($1)

-- name: chunks_are_ready
select exists (select from everyrun_queue.workflow_loads where ready_chunks > 0)

-- name: count_paused_workflows
select count(*) from everyrun_queue.paused where kind = 'workflow'
