-- name: foreign_runs
-- Foreign runs (of other callers) that still have their content, oldest first.
select run_id, batch_id, chunk, source, observed_at, version,
       jsonb_build_object(
           'object', 'workflow_run', 'id', run_id, 'status', status, 'batchId', batch_id, 'metadata', metadata,
           'failureReason', run -> 'failureReason', 'failureMessage', run -> 'failureMessage',
           'endTime', run -> 'endTime', 'reviewedAt', run -> 'reviewedAt', 'usage', run -> 'usage')::text as head
from everyrun.unmatched_runs u
where right(version, 1) <> '~' and first_seen < now() - make_interval(secs => $1)
  and not exists (select from everyrun_queue.installation i where i.installation = u.installation)
order by first_seen
limit $2
