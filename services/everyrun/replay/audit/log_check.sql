-- name: create_tables
create unlogged table if not exists audit_seen (
    topic text not null, partition int not null, "offset" bigint not null, id bigint, content bigint not null);
create unlogged table if not exists audit_gaps (
    topic text not null, partition int not null, start bigint not null, next bigint not null,
    primary key (topic, partition, start));

-- name: add_gap
insert into audit_gaps values ($1, $2, $3, $4) on conflict do nothing

-- name: gaps
select topic, partition, start, next from audit_gaps order by 1, 2, 3

-- name: reused_ids
select topic, array_agg(distinct topic || ':' || partition || ':' || "offset") as records
from audit_seen join (
    select topic, id from audit_seen where id is not null group by topic, id having min(content) <> max(content)
) reused using (topic, id)
group by topic, id
order by min(partition), min("offset")

-- name: missing_counterparts
-- If Extend answered an attempt, there must be a batch-requested. If there is a doubt-resent, there must be a
-- batch-in-doubt. But a batch-in-doubt alone is no defect. It is the only event of an attempt that was never sent,
-- because the dispatcher died after it claimed the attempt and before it wrote batch-requested. Attempt 0 stands for a
-- chunk that was never sent, and was cut or cancelled.
select 'batch-requested' as type, chunk || '/' || attempt as subject,
       'an attempt without batch-requested' as defect
from batches
where requested_at is null and fingerprints is null and attempt > 0
  and (submitted_at is not null or rejected_at is not null or cut_at is not null or returned_at is not null)
union all
select 'batch-in-doubt', chunk || '/' || attempt, 'doubt-resent without batch-in-doubt'
from batches where resent_at is not null and in_doubt_at is null
union all
select 'submission-accepted', b.submission_id, 'attempts of a submission without submission-accepted'
from batches b left join submissions s using (submission_id)
where s.submission_id is null
group by b.submission_id
