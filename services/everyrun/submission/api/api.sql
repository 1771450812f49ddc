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

-- name: pauses
select kind, id, reason, decided_by, since from everyrun_queue.paused
where kind = $1 and ($2::text is null or id > $2) order by id limit $3

-- name: workflow_known
select exists (select from everyrun_queue.submissions where workflow_id = $1)

-- name: submission_known
select exists (select from everyrun_queue.submissions where submission_id = $1)

-- name: workflow_of
select workflow_id from everyrun_queue.submissions where submission_id = $1

-- name: unsettled_inputs
-- The number of inputs without a result, by what they wait for. $1 is 'submission' or 'workflow', $2 is its id. Inputs
-- whose secrets were removed cannot be sent, so they count as 'secrets_removed' even if no worker has tried to claim
-- their chunk since.
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

-- name: submitted_inputs
select coalesce(sum(c.last_position - c.first_position + 1), 0)::bigint
from everyrun_queue.submissions s join everyrun_queue.chunks c using (submission_id)
where c.state = 'submitted' and case when $1 = 'submission' then s.submission_id else s.workflow_id end = $2

-- name: retries
select x.retry, x.inputs, x.chosen::text as chosen, x.requested_by, x.reason, x.created_at,
       (select coalesce(sum(c.last_position - c.first_position + 1), 0) from everyrun_queue.chunks c
        where c.submission_id = x.submission_id and c.retry = x.retry and c.state = 'waiting')::int as waiting
from everyrun_queue.retries x where x.submission_id = $1 order by x.retry

-- name: synced_objects
select object, version, submission_id from everyrun_queue.synced_objects
where source = $1 and workflow_id = $2 and ($3::text is null or object > $3) order by object limit $4
