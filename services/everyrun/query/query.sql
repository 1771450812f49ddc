-- name: submission
select submission_id, workflow_id, workflow_version, priority, expected, created_at
from everyrun.submissions where submission_id = $1
union all
-- If the submission was accepted a moment ago, its event has not reached the result tables yet, but the queue knows it.
select submission_id, workflow_id, workflow_version, priority, expected, created_at
from everyrun_queue.submissions where submission_id = $1
limit 1

-- name: counts
-- Number of inputs that have a row in results, by status, from the stored counters.
select c.key as status, sum(c.value::bigint)::bigint as inputs
from everyrun.batches b, jsonb_each_text(b.counts) c
where b.submission_id = $1
group by c.key

-- name: unsent_groups
-- Number of the inputs that have no row in results, grouped by what they wait for.
select status, waits_for, detail, min(workflow_id) as workflow_id, $1::text as submission_id,
       sum(inputs)::bigint as inputs, max(until) as until,
       coalesce(sum(inputs) filter (where in_transit), 0)::bigint as in_transit,
       coalesce(sum(inputs) filter (
           where coalesce(late_at, created_at + make_interval(secs => $2)) <= now()), 0)::bigint as late
from everyrun_queue.unsent($1)
group by status, waits_for, detail
order by inputs desc, waits_for, detail

-- name: untold
-- Number of inputs whose new try the queue has and the result tables do not know yet, by their status in the tables.
select r.status, count(*)::bigint as inputs
from everyrun_queue.chunks c
join everyrun_queue.inputs i
  on i.submission_id = c.submission_id and i.position between c.first_position and c.last_position
join everyrun.results r on r.input_id = i.submission_id || ':' || i.external_id
where c.submission_id = $1 and c.retry > 0 and c.state in ('waiting', 'sending', 'in_doubt', 'held', 'submitted', 'refused')
  and everyrun_queue.is_untold(c.submission_id, c.retry, c.first_position)
group by r.status

-- name: will_retry
-- True if the submission has automatic retries, and settled chunks whose failed inputs were not retried by them yet.
select exists (
    select from everyrun_queue.rules x join everyrun_queue.chunks c using (submission_id)
    where x.submission_id = $1 and x.retries > 0 and c.state = 'submitted' and not c.looked_at)

-- name: polling
-- Results that are missing for inputs that were sent: how many, if one of their batches was polled before, and when the
-- next of these batches is polled. A batch is polled from $2 to $3 seconds after it was sent. Runs with ambiguous
-- metadata are not missing: Extend has listed them, and another poll does not tell to which inputs they belong.
select coalesce(sum(m.missing), 0)::bigint as missing, bool_or(p.batch_id is not null) as polled,
       min(coalesce(p.next_at, b.submitted_at + make_interval(secs => $2))) as next_at,
       extract(epoch from min(coalesce(p.next_at, b.submitted_at + make_interval(secs => $2))) - now())::float8
           as seconds
from everyrun.batches b
left join everyrun_queue.polls p using (batch_id)
cross join lateral (
    select sum(c.value::bigint) - (
        select count(*) from everyrun.unmatched_runs u where u.batch_id = b.batch_id and u.reason = 'ambiguous_metadata'
    ) as missing
    from jsonb_each_text(b.counts) c where c.key in ('SUBMITTED', 'PENDING', 'PROCESSING', 'CANCELLING')
) m
where b.submission_id = $1 and b.state = 'SUBMITTED' and b.batch_id is not null and m.missing > 0
  and b.submitted_at > now() - make_interval(secs => $3)

-- name: ambiguous
select count(*) from everyrun.batches b join everyrun.unmatched_runs u using (batch_id)
where b.submission_id = $1 and u.reason = 'ambiguous_metadata'

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
-- Number of runs whose webhook contained only a link, and whose payload was not fetched yet. For such a run the tables
-- contain neither a final status, nor the NEEDS_REVIEW that the webhook reports.
select count(distinct d.run_id) from everyrun.deliveries d
join everyrun.batches b on b.chunk = d.chunk and b.attempt = d.attempt
where b.submission_id = $1
  and not exists (
      select from (
          select run_id, status from everyrun.results
          union all select run_id, status from everyrun.other_runs
          union all select run_id, status from everyrun.unmatched_runs
      ) known
      where known.run_id = d.run_id
        and (known.status in ('PROCESSED', 'FAILED', 'CANCELLED', 'REJECTED')
             or (known.status = 'NEEDS_REVIEW' and d.event_type = 'workflow_run.needs_review')))

-- name: has_status
select exists (select from everyrun.batches where counts ? $1)

-- name: results
-- A page of results. Python inserts the conditions of filters.sql, the order, and the numbers of two parameters.
select input_id, external_id, submission_id, batch_id, position, file, metadata, run_id, status, failure_reason,
       failure_message, credits, source, observed_at, settled_at, version, case when /*with_run*/ then run end as run
from everyrun.results
where /*conditions*/
order by /*order*/
limit /*limit*/

-- name: result_counts
-- Number of rows by status and failure reason. Python inserts the conditions of filters.sql.
select status, failure_reason, count(*) as inputs
from everyrun.results
where /*conditions*/
group by status, failure_reason

-- name: failure_counts
-- The same for all rows of a submission that have a failure reason. The list of statuses is that of the index
-- results_not_processed, so that the query reads only the rows in this index.
select status, failure_reason, count(*) as inputs
from everyrun.results
where submission_id = $1 and status not in ('PROCESSED', 'SUBMITTED', 'PENDING', 'PROCESSING')
  and failure_reason is not null
group by status, failure_reason

-- name: unsent
-- A page of inputs that have a status and no row in results, by chunk and position. If an external id is given, the
-- query reads all chunks. Otherwise it reads only the chunks and inputs of the page.
with chunks as (
    select * from everyrun_queue.unsent($1, $4, case when $2::text is null then $6::bigint end, $3)
    where status = $3
)
select i.submission_id || ':' || i.external_id as input_id, i.external_id, i.submission_id, c.chunk,
       coalesce(i.first_try, i.position) as position, i.position as queue_position,
       c.workflow_id, c.attempt, c.status, c.waits_for, c.detail, c.until
from chunks c
join everyrun_queue.inputs i on i.submission_id = c.submission_id and i.position between c.first_position and c.last_position
where ($2::text is null or i.external_id = $2) and ($4::text is null or (c.chunk, i.position) > ($4, $5::int))
union all
select given.input_id, substr(given.input_id, length(c.submission_id) + 2), c.submission_id, c.chunk, given.position,
       given.position,
       c.workflow_id, c.attempt, c.status, c.waits_for, c.detail, c.until
from chunks c, lateral (
    select n.id as input_id, n.position::int as position from unnest(c.input_ids) with ordinality as n (id, position)
) given
where ($2::text is null or given.input_id = c.submission_id || ':' || $2)
  and ($4::text is null or (c.chunk, given.position) > ($4, $5::int))
order by chunk, queue_position
limit $6

-- name: result
select input_id, external_id, submission_id, batch_id, position, chunk, attempt, file, metadata, run_id, status,
       failure_reason, failure_message, credits, source, observed_at, settled_at, version, run
from everyrun.results where input_id = $1

-- name: queued
-- One input that has no row in results, or whose new try waits to be sent.
select i.submission_id, i.external_id, coalesce(i.first_try, i.position) as position, c.chunk, c.workflow_id, c.attempt, c.status, c.waits_for, c.detail,
       c.until
from everyrun_queue.inputs i
join everyrun_queue.unsent(i.submission_id) c on i.position between c.first_position and c.last_position
where i.submission_id = $1 and i.external_id = $2
union all
select c.submission_id, $2, null, c.chunk, c.workflow_id, c.attempt, c.status, c.waits_for, c.detail, c.until
from everyrun_queue.unsent($1) c where $1 || ':' || $2 = any (c.input_ids)
limit 1

-- name: unmatched_runs
-- A page of unmatched runs, oldest first. The column alarming is computed here, because it depends on the present time.
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
-- Two joins, each of which uses an index. A single join with "or" would read every batch for every run.
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
       -- There may be very many foreign runs, and counting them exactly is not worth the time: stop at 10,001.
       (select count(*) from (select from everyrun.unmatched_runs limit 10001) some) as unmatched

-- name: estimate_facts
-- What an estimate needs. first_sent: when the first call began. ahead: open inputs of the workflow's other submissions.
-- spent: the credits of the settled batches, which have this number of inputs. extend_pause: how long no batch may be
-- sent, in seconds.
select clock_timestamp() as now,
       (select min(requested_at) from everyrun.batches where submission_id = $1) as first_sent,
       coalesce((select w.open_inputs - l.open_inputs
                 from everyrun_queue.submission_loads l join everyrun_queue.workflow_loads w using (workflow_id)
                 where l.submission_id = $1), 0) as ahead,
       c.spent, c.inputs,
       coalesce((select extract(epoch from free_at - clock_timestamp()) from everyrun_queue.budgets
                 where category = 'RUN'), 0)::float8 as extend_pause
from (
    select coalesce(sum(credits), 0)::float8 as spent,
           coalesce(sum(last_position - first_position + 1), 0)::bigint as inputs
    from everyrun_queue.chunks where submission_id = $1 and credits is not null
) c

-- name: settled_samples
-- The last samples, which cover a little more than the time over which the rate is measured.
select sampled_at, settled from everyrun_queue.settled_samples where submission_id = $1
order by sampled_at desc limit 30
