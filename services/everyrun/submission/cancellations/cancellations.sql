-- name: last_position
-- The last position of a submission, with all later tries of its inputs. No row if there is no such submission.
select greatest(s.expected, (select max(c.last_position) from everyrun_queue.chunks c where c.submission_id = $1)) as last
from everyrun_queue.submissions s where s.submission_id = $1

-- name: batch_positions
select c.submission_id, c.first_position, c.last_position
from everyrun_queue.chunks c
where c.chunk = coalesce(
    (select b.chunk from everyrun.batches b where b.batch_id = $1),
    (select q.chunk from everyrun_queue.chunks q where q.batch_id = $1 order by q.chunk limit 1))

-- name: positions_of_ids
select external_id, position from everyrun_queue.inputs where submission_id = $1 and external_id = any ($2::text[])

-- name: is_announced
select announced_at is not null from everyrun_queue.submissions where submission_id = $1

-- name: counts
-- The inputs of a submission at the positions $2. Queued: by the state of their chunk, if it has no outcome yet. In
-- transit: by the state of their chunk, if its outcome has not reached the result tables. Rows: by status; chunks whose
-- inputs are all counted have counters, and of other chunks the rows are counted.
with scope as (
    select c.chunk, c.state, c.first_position, c.last_position, size.inputs,
           $2::int4multirange @> int4range(c.first_position, c.last_position, '[]') as whole,
           exists (select from everyrun.batches b
                   where b.chunk = c.chunk and b.state in ('SUBMITTED', 'SETTLED', 'REFUSED', 'CANCELLED')) as has_rows
    from everyrun_queue.chunks c
    cross join lateral (
        select sum(upper(p) - lower(p)) as inputs
        from unnest($2::int4multirange * int4multirange(int4range(c.first_position, c.last_position, '[]'))) p
    ) size
    where c.submission_id = $1 and c.state <> 'cut'
      and $2::int4multirange && int4range(c.first_position, c.last_position, '[]')
)
select case when state in ('waiting', 'sending', 'in_doubt', 'held') then 'queued' else 'in_transit' end as kind,
       state as name, sum(inputs)::bigint as inputs
from scope where not has_rows group by 1, 2
union all
select 'rows', k.key, sum(k.value::bigint)::bigint
from scope s join everyrun.batches b using (chunk), jsonb_each_text(b.counts) k where s.whole group by 2
union all
select 'rows', r.status, count(*)
from scope s
join everyrun_queue.inputs i on i.submission_id = $1 and i.position between s.first_position and s.last_position
join everyrun.results r on r.input_id = i.submission_id || ':' || i.external_id and r.chunk = s.chunk
where not s.whole and s.has_rows and $2::int4multirange @> i.position
group by 2

-- name: insert_cancellation
insert into everyrun_queue.cancellations
    (cancellation_id, submission_id, scope, batch_id, positions, requested_by, reason, requested_at)
select $1, $2, $3, $4, $5, $6, $7, $8
where exists (select from everyrun_queue.submissions where submission_id = $2)
on conflict do nothing

-- name: take
-- Takes the open cancellation that is due first, so that no other worker takes it for the next $1 seconds.
update everyrun_queue.cancellations
set next_at = now() + make_interval(secs => $1)
where cancellation_id = (
    select cancellation_id from everyrun_queue.cancellations
    where ended_at is null and next_at <= now() order by next_at limit 1 for update skip locked)
returning cancellation_id, submission_id, positions

-- name: keep
update everyrun_queue.cancellations
set next_at = now() + make_interval(secs => $2), progressed_at = now()
where cancellation_id = $1 and ended_at is null

-- name: end_look
-- Without progress, a worker looks again after a tenth of the time since the last progress, from 1 second to a minute.
update everyrun_queue.cancellations
set problem = $3, ended_at = case when $4 then now() end, progressed_at = case when $2 then now() else progressed_at end,
    next_at = case when $4 then null when $2 then now() + interval '1 second'
                   else now() + least(greatest((now() - progressed_at) / 10, interval '1 second'), interval '1 minute') end
where cancellation_id = $1

-- name: to_cancel
-- Leaves out chunks of a retry that is not announced yet.
select c.chunk, c.first_position, c.last_position,
       x.positions @> int4range(c.first_position, c.last_position, '[]') as whole
from everyrun_queue.chunks c join everyrun_queue.cancellations x on x.cancellation_id = c.cancellation
where c.cancellation = $1 and c.state = 'waiting' and c.not_before < 'infinity'
order by c.chunk

-- name: batches
-- The batches that may have runs to cancel: of all attempts that Extend accepted, unless all their inputs are settled.
-- done: the number of runs with an outcome.
select f.batch_id, f.chunk, f.whole, f.size,
       (select count(*) from everyrun_queue.cancelled_runs r
        where r.cancellation_id = $1 and r.batch_id = f.batch_id and r.outcome is not null) as done
from (
    select distinct on (a.batch_id) a.batch_id, c.chunk, c.last_position - c.first_position + 1 as size,
           x.positions @> int4range(c.first_position, c.last_position, '[]') as whole
    from everyrun_queue.cancellations x
    join everyrun_queue.chunks c on c.submission_id = x.submission_id
     and x.positions && int4range(c.first_position, c.last_position, '[]')
    cross join lateral (
        select c.batch_id where c.batch_id is not null
        union
        select b.batch_id from everyrun.batches b where b.chunk = c.chunk and b.batch_id is not null
    ) a
    where x.cancellation_id = $1
    order by a.batch_id, c.chunk
) f
where not exists (select from everyrun.batches b where b.batch_id = f.batch_id and b.state = 'SETTLED')
order by f.batch_id

-- name: open_rows
-- The inputs of a cancellation that are at Extend, according to the result tables, and whose run has no outcome yet.
-- $2 is a batch.
select r.input_id, r.run_id, r.status
from everyrun.batches b
join everyrun.results r on r.input_id = any (b.input_ids) and r.chunk = b.chunk and r.attempt = b.attempt
join everyrun_queue.cancellations x on x.cancellation_id = $1
join everyrun_queue.chunks c on c.chunk = b.chunk
where b.batch_id = $2 and r.status in ('SUBMITTED', 'PENDING', 'PROCESSING', 'CANCELLING')
  and exists (
      select from everyrun_queue.inputs i
      where i.submission_id = r.submission_id and i.external_id = r.external_id
        and i.position between c.first_position and c.last_position and x.positions @> i.position)
  and not exists (
      select from everyrun_queue.cancelled_runs k
      where k.cancellation_id = $1 and k.run_id = r.run_id and k.outcome is not null)
order by r.input_id

-- name: known_runs
-- Runs of a batch whose inputs are known.
select run_id from everyrun.results
where input_id = any (array(select unnest(input_ids) from everyrun.batches where batch_id = $1)) and run_id is not null
union all
select run_id from everyrun.other_runs where batch_id = $1

-- name: registered_inputs
select input_ids, fingerprints from everyrun.batches where batch_id = $1 and fingerprints is not null

-- name: outcomes_of
select run_id, outcome, refusals from everyrun_queue.cancelled_runs where cancellation_id = $1 and batch_id = $2

-- name: save_outcomes
insert into everyrun_queue.cancelled_runs as known
    (cancellation_id, batch_id, run_id, input_id, outcome, refusals, detail, at)
select $1, $2, given.*, now()
from unnest($3::text[], $4::text[], $5::text[], $6::int[], $7::text[]) as given (run_id, input_id, outcome, refusals, detail)
on conflict (cancellation_id, run_id) do update
set input_id = coalesce(excluded.input_id, known.input_id), outcome = excluded.outcome, refusals = excluded.refusals,
    detail = excluded.detail, at = excluded.at

-- name: is_open
-- True while an input of the cancellation may change its status by it: its chunk has no outcome, or the outcome is not
-- in the result tables yet, or its run has not ended. A run that Extend does not have never ends.
select exists (
    select from everyrun_queue.cancellations x
    join everyrun_queue.chunks c on c.submission_id = x.submission_id
     and x.positions && int4range(c.first_position, c.last_position, '[]')
    where x.cancellation_id = $1
      and (c.state in ('waiting', 'sending', 'in_doubt', 'held')
           or (c.state <> 'cut' and not exists (
                   select from everyrun.batches b
                   where b.chunk = c.chunk and b.state in ('SUBMITTED', 'SETTLED', 'REFUSED', 'CANCELLED')))
           or exists (
                   select from everyrun.batches b
                   join everyrun.results r on r.input_id = any (b.input_ids) and r.chunk = b.chunk and r.attempt = b.attempt
                   join everyrun_queue.inputs i on i.submission_id = r.submission_id and i.external_id = r.external_id
                    and i.position between c.first_position and c.last_position
                   where b.chunk = c.chunk and b.state = 'SUBMITTED' and x.positions @> i.position
                     and r.status in ('SUBMITTED', 'PENDING', 'PROCESSING', 'CANCELLING')
                     and not exists (
                         select from everyrun_queue.cancelled_runs k
                         where k.cancellation_id = x.cancellation_id and k.run_id = r.run_id and k.outcome = 'gone'))))

-- name: cancellation
select cancellation_id, submission_id, scope, batch_id, positions, requested_by, reason, requested_at, problem, ended_at
from everyrun_queue.cancellations where cancellation_id = $1

-- name: cancellations
select cancellation_id, submission_id, scope, batch_id, positions, requested_by, reason, requested_at, problem, ended_at
from everyrun_queue.cancellations
where ($1::text is null or submission_id = $1) and ($2::text is null or cancellation_id < $2)
order by cancellation_id desc
limit $3

-- name: outcome_counts
select outcome as name, count(*) as inputs from everyrun_queue.cancelled_runs
where cancellation_id = $1 and outcome is not null group by outcome
union all
select 'cancelled_unsent', coalesce(sum(last_position - first_position + 1), 0)::bigint
from everyrun_queue.chunks where cancellation = $1 and state = 'cancelled'
