-- name: report
select s.submission_id, s.workflow_id, s.workflow_version, s.created_at, s.expected,
       (select coalesce(jsonb_object_agg(status, inputs), '{}')
        from (select status, sum(inputs)::bigint as inputs from submission_counts
              where submission_id = s.submission_id group by status) c) as by_status,
       (select coalesce(jsonb_object_agg(state, number), '{}')
        from (select state, count(*) as number from batches
              where submission_id = s.submission_id group by state) b) as batches,
       (select coalesce(sum(duplicates), 0)::bigint from batches where submission_id = s.submission_id) as duplicates,
       (select count(*) from unmatched_runs u
        where u.batch_id in (select batch_id from batches where submission_id = s.submission_id)
           or u.chunk in (select chunk from batches where submission_id = s.submission_id)) as unmatched,
       (select coalesce(bool_and(balanced), true) from report where submission_id = s.submission_id)
           and s.expected = (select coalesce(sum(inputs), 0) from submission_counts
                             where submission_id = s.submission_id) as balanced
from submissions s
where s.submission_id = $1

-- name: results
select input_id, external_id, batch_id, status, failure_reason, failure_message, run_id, credits, source, file,
       metadata, observed_at, settled_at, version
from results where input_id >= $1 || ':' and input_id < $1 || ';' and submission_id = $1
order by input_id

-- name: row
select * from results where input_id = $1

-- name: attempt
select $1 as input_id, submission_id, chunk, attempt, state, reason, requested_at, in_doubt_at, returned_at
from batches where $1 = any (input_ids)
-- The latest attempt comes first. The parts of a cut chunk are newer than the chunk itself, and have longer ids.
order by length(chunk) desc, attempt desc
limit 1
