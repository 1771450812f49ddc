-- name: find_submission
select registered_batch, everyrun_queue.incarnation() as incarnation
from everyrun_queue.submissions where submission_id = $1

-- name: lock_submission
select registered_batch, everyrun_queue.incarnation() as incarnation
from everyrun_queue.submissions where submission_id = $1 for update

-- name: same_request
select retry, inputs, chosen::text as chosen from everyrun_queue.retries where submission_id = $1 and request_key = $2

-- name: create_chosen
create temporary table if not exists chosen_inputs (
    external_id text collate "C", position int, original text collate "C", status text, failure_reason text,
    credits double precision, metadata text, file text
) on commit delete rows

-- name: choose
-- Chooses the inputs that a retry sends again, and reads their files from the queue. Leaves out inputs whose newest try
-- is not in the result tables yet: their status there is that of an earlier try. An input has the status MISSING if
-- Extend no longer has its run.
insert into chosen_inputs (external_id, position, original, status, failure_reason, credits, metadata, file)
with untold as materialized (
    select i.external_id
    from everyrun_queue.chunks c
    join everyrun_queue.inputs i
      on i.submission_id = c.submission_id and i.position between c.first_position and c.last_position
    where c.submission_id = $1 and c.retry > 0 and c.state <> 'cut'
      and everyrun_queue.is_untold(c.submission_id, c.retry, c.first_position)
),
found as (
    select r.external_id, r.position, r.chunk, r.failure_reason, r.credits, r.metadata, left(r.version, 4) <> '0000' as retried,
           case when r.settled_at is null and g.run_id is not null then 'MISSING' else r.status end as shown
    from everyrun.results r
    left join everyrun_queue.gone_runs g on g.run_id = r.run_id and r.settled_at is null
    where r.input_id >= $1 || ':' and r.input_id < $1 || ';'
      and (r.settled_at is null or r.status = any ($2::text[]))
      and (cardinality($4::text[]) = 0
           or r.input_id = any (array(select $1 || ':' || given from unnest($4::text[]) as given)))
)
select f.external_id, f.position, split_part(f.chunk, '-', 1), f.shown, f.failure_reason, f.credits, f.metadata::text,
       coalesce(given.file, case when f.retried then (
           select i.file from everyrun_queue.inputs i where i.submission_id = $1 and i.external_id = f.external_id
           order by i.position desc limit 1) else first.file end)
from found f
left join everyrun_queue.inputs first on first.submission_id = $1 and first.position = f.position
left join unnest($7::text[], $8::text[]) as given (external_id, file) on given.external_id = f.external_id
where f.shown = any ($2::text[])
  and (cardinality($3::text[]) = 0 or f.failure_reason = any ($3::text[]))
  and not exists (
      select from unnest($5::text[], $6::text[]) as wanted (path, value)
      where f.metadata #>> string_to_array(wanted.path, '.') is distinct from wanted.value)
  and not exists (select from untold u where u.external_id = f.external_id)
order by f.position
limit $9

-- name: chosen_counts
select status, failure_reason, count(*)::int as inputs, coalesce(sum(credits), 0)::float8 as credits
from chosen_inputs group by status, failure_reason order by status, failure_reason

-- name: without_files
-- Chosen inputs that cannot be sent, because the queue has no file of theirs, or a file without its link or password.
select external_id, count(*) over () as inputs
from chosen_inputs where file is null or file like '%"redacted":true}' order by position limit 100

-- name: ids_not_chosen
select given.id, coalesce(r.status, 'NOT_FOUND') as status, count(*) over () as inputs
from unnest($2::text[]) as given (id)
left join everyrun.results r on r.input_id = $1 || ':' || given.id
where not exists (select from chosen_inputs c where c.external_id = given.id)
order by given.id limit 100

-- name: next_retry
select coalesce(max(retry), 0) + 1 from everyrun_queue.retries where submission_id = $1

-- name: insert_retry
insert into everyrun_queue.retries (submission_id, retry, inputs, chosen, requested_by, reason, request_key, created_at)
values ($1, $2, $3, $4::text::jsonb, $5, $6, $7, now())

-- name: insert_tries
-- Stores a new try of each chosen input after all inputs of the submission, and a chunk for those of each original
-- chunk. Nobody can claim these chunks until their not_before is set, which happens when they were announced.
with numbered as (
    select c.*, (select max(position) from everyrun_queue.inputs where submission_id = $1)
                + row_number() over (order by c.original, c.position) as queue_position
    from chosen_inputs c
),
inserted as (
    insert into everyrun_queue.inputs (submission_id, position, first_try, external_id, file, metadata)
    select $1, queue_position, position, external_id, file, metadata from numbered
)
insert into everyrun_queue.chunks (chunk, submission_id, first_position, last_position, retry, not_before)
select original || '-r' || $2::int, $1, min(queue_position), max(queue_position), $2, 'infinity'
from numbered group by original

-- name: check_secrets_again
-- The new files may have links and passwords. They are removed as those of the first tries are.
update everyrun_queue.submissions set redact_after = coalesce(redact_after, now()) where submission_id = $1

-- name: unannounced
select c.chunk, c.submission_id, c.first_position, c.last_position, c.retry, s.workflow_id, x.inputs as total,
       x.chosen::text as chosen, x.requested_by, x.reason, x.created_at
from everyrun_queue.chunks c
join everyrun_queue.submissions s using (submission_id)
join everyrun_queue.retries x using (submission_id, retry)
where c.state = 'waiting' and c.not_before = 'infinity' and c.chunk > $1
order by c.chunk limit 20

-- name: mark_announced
update everyrun_queue.chunks set not_before = '-infinity' where chunk = any ($1::text[]) and not_before = 'infinity'

