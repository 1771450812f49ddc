-- name: make
create unlogged table if not exists audit_seen (
    topic text not null, partition int not null, "offset" bigint not null, id bigint, content bigint not null);
create unlogged table if not exists audit_gaps (
    topic text not null, partition int not null, start bigint not null, next bigint not null,
    primary key (topic, partition, start));

-- name: gap
insert into audit_gaps values ($1, $2, $3, $4) on conflict do nothing

-- name: gaps
select topic, partition, start, next from audit_gaps order by 1, 2, 3

-- name: reused
select topic, array_agg(distinct topic || ':' || partition || ':' || "offset") as places
from audit_seen join (
    select topic, id from audit_seen where id is not null group by topic, id having min(content) <> max(content)
) reused using (topic, id)
group by topic, id
order by min(partition), min("offset")

-- name: lonely
-- Of an attempt that Extend answered the log has first that it was requested; of one given up, that it was in doubt.
-- One whose worker died between claiming it and telling the log was never sent: the log has nothing of it but its doubt.
select 'batch-requested' as what, chunk || '/' || attempt as name,
       'an attempt at sending without batch-requested' as said
from batches
where requested_at is null and fingerprints is null
  and (submitted_at is not null or rejected_at is not null or cut_at is not null or returned_at is not null)
union all
select 'batch-in-doubt', chunk || '/' || attempt, 'doubt-resent without batch-in-doubt'
from batches where resent_at is not null and in_doubt_at is null
union all
select 'submission-accepted', b.submission_id, 'attempts at sending of a submission without submission-accepted'
from batches b left join submissions s using (submission_id)
where s.submission_id is null
group by b.submission_id
