-- name: submission
select submission_id, workflow_id, workflow_version, priority, expected, created_at
from everyrun.submissions where submission_id = $1
union all
-- Handed in a moment ago: its event is on its way.
select submission_id, workflow_id, workflow_version, priority, expected, created_at
from everyrun_queue.submissions where submission_id = $1
limit 1

-- name: counts
select status, sum(inputs)::bigint as inputs from everyrun.submission_counts where submission_id = $1 group by status

-- name: counted_rows
select status, count(*) as inputs from everyrun.results
where input_id >= $1 || ':' and input_id < $1 || ';'
group by status

-- name: batch_lines
select * from everyrun.report where submission_id = $1 order by chunk, attempt

-- name: batch_lines_after
select * from everyrun.report
where submission_id = $1 and (chunk, attempt) > ($2::text, $3::int) order by chunk, attempt limit $4

-- name: batch
select r.*, b.workflow_id, b.workflow_version, b.priority, b.reason, b.requested_at, b.submitted_at, b.settled_at
from everyrun.report r join everyrun.batches b using (chunk, attempt)
where r.batch_id = $1

-- name: states
select state, count(*) as batches from everyrun.batches where submission_id = $1 group by state

-- name: pending_deliveries
-- A link not fetched yet: nothing that far is known of its run.
select count(distinct d.run_id) from everyrun.deliveries d
join everyrun.batches b on b.chunk = d.chunk and b.attempt = d.attempt
where b.submission_id = $1
  and not exists (
      select from (
          select run_id, status from everyrun.results
          union all select run_id, status from everyrun.duplicate_runs
          union all select run_id, status from everyrun.unmatched_runs
      ) known
      where known.run_id = d.run_id
        and (known.status in ('PROCESSED', 'FAILED', 'CANCELLED', 'REJECTED')
             or (known.status = 'NEEDS_REVIEW' and d.event_type = 'workflow_run.needs_review')))

-- name: has_status
select exists (select from everyrun.batches where counts ? $1)

-- name: results
-- One page by input id. A submission is a range of the primary key, a batch the list of its inputs, and an external
-- id alone the ids it makes with each submission: no filter needs an index of its own.
select input_id, external_id, submission_id, batch_id, position, file, metadata, run_id, status, failure_reason,
       failure_message, credits, source, observed_at, settled_at, version, case when $7 then run end as run
from everyrun.results
where ($1::text is null or (input_id >= $1 || ':' and input_id < $1 || ';' and submission_id = $1))
  and ($2::text is null
       or (input_id = any (array(select unnest(input_ids) from everyrun.batches where batch_id = $2)) and batch_id = $2))
  and ($3::text is null or status = $3)
  and ($4::text is null or input_id = any (array(select submission_id || ':' || $4 from everyrun.submissions)))
  and ($5::text is null or input_id > $5)
order by input_id
limit $6

-- name: unsent
-- Inputs of attempts that are under way or in doubt; such a chunk has no rows of results yet. Each input once, with
-- its newest attempt.
select distinct on (input_id) input_id, external_id, submission_id, batch_id, chunk, attempt, status
from (
    select i.input_id collate "C" as input_id, substr(i.input_id, length(b.submission_id) + 2) as external_id,
           b.submission_id, b.batch_id, b.chunk, b.attempt,
           case when bool_or(b.state = 'IN_DOUBT') over (partition by b.chunk) then 'IN_DOUBT' else 'SENDING' end
               as status
    from everyrun.batches b, unnest(b.input_ids) as i (input_id)
    where b.state in ('SENDING', 'IN_DOUBT')
      and not exists (
          select from everyrun.batches o where o.chunk = b.chunk and o.state in ('SUBMITTED', 'SETTLED', 'REFUSED', 'CUT'))
      and ($1::text is null or b.submission_id = $1)
) unsent
where ($2::text is null or batch_id = $2)
  and ($3::text is null or status = $3)
  and ($4::text is null or external_id = $4)
  and ($5::text is null or input_id > $5)
order by input_id, attempt desc
limit $6

-- name: waiting
-- By submission and position: so a page reads the chunks and inputs it shows, however many wait. A chunk waits as
-- long as the projection knows of no attempt that is under way or was taken, as in submission_counts.
select i.submission_id || ':' || i.external_id as input_id, i.external_id, i.submission_id, i.position
from (
    select c.submission_id, c.first_position, c.last_position
    from everyrun_queue.chunks c
    where ($1::text is null or c.submission_id = $1)
      and c.state <> 'cut'
      and ($3::text is null or (c.submission_id, c.last_position) > ($3, $4::int))
      and not exists (
          select from everyrun.batches b
          where b.chunk = c.chunk and b.state in ('SENDING', 'IN_DOUBT', 'SUBMITTED', 'SETTLED', 'REFUSED'))
    order by c.submission_id, c.first_position
    limit case when $2::text is null then $5::bigint end
) c
join everyrun_queue.inputs i on i.submission_id = c.submission_id and i.position between c.first_position and c.last_position
where ($2::text is null or i.external_id = $2)
  and ($3::text is null or (i.submission_id, i.position) > ($3, $4::int))
order by i.submission_id, i.position
limit $5

-- name: result
select input_id, external_id, submission_id, batch_id, position, chunk, attempt, file, metadata, run_id, status,
       failure_reason, failure_message, credits, source, observed_at, settled_at, version, run
from everyrun.results where input_id = $1

-- name: queued
select i.submission_id, i.external_id, i.position from everyrun_queue.inputs i
where i.submission_id = $1 and i.external_id = $2

-- name: unmatched_runs
-- Oldest first; alarming is computed on reading, as it depends on now.
select run_id, batch_id, status, reason, metadata, first_seen, observed_at, source, fingerprints,
       first_seen < now() - make_interval(secs => $1) as alarming
from everyrun.unmatched_runs
where ($2::text is null or reason = $2)
  and ($3::text is null or batch_id = $3)
  and ($4::boolean is null or (first_seen < now() - make_interval(secs => $1)) = $4)
  and ($5::timestamptz is null or (first_seen, run_id) > ($5, $6::text))
order by first_seen, run_id
limit $7

-- name: unmatched_by_reason
select reason, count(*) as runs, count(*) filter (where first_seen < now() - make_interval(secs => $1)) as alarming
from everyrun.unmatched_runs group by reason order by reason

-- name: unmatched_of
-- Two joins, each by an index: one join with "or" would look at every batch for every run.
select reason, count(*) as runs from (
    select u.run_id, u.reason from everyrun.unmatched_runs u join everyrun.batches b using (batch_id)
    where b.submission_id = $1
    union
    select u.run_id, u.reason from everyrun.unmatched_runs u join everyrun.batches b using (chunk)
    where b.submission_id = $1
) runs
group by reason order by reason

-- name: quarantine
select source, topic, partition, "offset", reason, state, octet_length(raw) as bytes, first_seen, decided_at
from everyrun.quarantine
where ($1::text is null or state = $1)
  and ($2::text is null or strpos(reason, $2) > 0)
  and ($3::text is null or topic = $3)
  and ($4::text is null or source > $4)
order by source
limit $5

-- name: quarantine_reasons
select topic, reason, state, count(*) as messages, min(first_seen) as first_seen, max(first_seen) as last_seen
from everyrun.quarantine
where ($1::text is null or state = $1)
group by topic, reason, state
order by messages desc, topic, reason
limit 100

-- name: quarantined
select source, topic, partition, "offset", reason, state, octet_length(raw) as bytes, first_seen, decided_at, raw,
       headers
from everyrun.quarantine where source = $1

-- name: decisions_of
select kind, decided_by, reason, decided_at from everyrun.decisions where source = $1 order by decided_at, event_id

-- name: watched_counts
select (select count(*) from everyrun.quarantine where state = 'OPEN') as quarantined,
       -- Other people's runs may be many, and are nothing to be alarmed about.
       (select count(*) from (select from everyrun.unmatched_runs limit 10001) some) as unmatched
