-- name: receivers
-- All receivers that are not removed; is_due is true if a delivery is due now.
select r.receiver_id, r.url, r.format, r.events, r.workflows, r.state, r.secret, r.previous_secret, r.previous_until,
       r.failures, r.last_error, coalesce(extract(epoch from r.not_before - now()), 0)::float8 as pause,
       r.state = 'active' and exists (
           select from everyrun_queue.notification_deliveries d
           where d.receiver_id = r.receiver_id and d.state = 'waiting' and d.not_before <= now()) as is_due
from everyrun_queue.receivers r where r.state <> 'removed'
order by r.receiver_id

-- name: starts
select receiver_id, topic, partition, first_offset, cluster_id from everyrun_queue.receiver_starts

-- name: positions
select topic, partition, next_offset, cluster_id from everyrun_queue.notifier_positions

-- name: add_notifications
insert into everyrun_queue.notifications (notification_id, event, subject, body)
select * from unnest($1::text[], $2::text[], $3::text[], $4::bytea[])
on conflict (notification_id) do nothing

-- name: add_deliveries
insert into everyrun_queue.notification_deliveries (receiver_id, notification_id, retry_until)
select receiver_id, notification_id, now() + make_interval(secs => $3)
from unnest($1::text[], $2::text[]) as given (receiver_id, notification_id)
on conflict (receiver_id, notification_id) do nothing

-- name: advance
insert into everyrun_queue.notifier_positions as p (topic, partition, next_offset, cluster_id)
select topic, partition, next_offset, $4 from unnest($1::text[], $2::int[], $3::bigint[]) as given (topic, partition, next_offset)
on conflict (topic, partition) do update
set next_offset = case when p.cluster_id = excluded.cluster_id then greatest(p.next_offset, excluded.next_offset)
                       else excluded.next_offset end,
    cluster_id = excluded.cluster_id

-- name: claim
-- Takes deliveries that are due. Until their outcome is stored, they are due again after $3 seconds, so that they are
-- sent again if this process dies. A large body is left out; it is read when it is sent.
with due as (
    select notification_id from everyrun_queue.notification_deliveries
    where receiver_id = $1 and state = 'waiting' and not_before <= now() and retry_until > now()
    order by not_before limit $2 for update skip locked
),
claimed as (
    update everyrun_queue.notification_deliveries d
    set not_before = now() + make_interval(secs => $3), attempts = d.attempts + 1
    from due where d.receiver_id = $1 and d.notification_id = due.notification_id
    returning d.notification_id, d.attempts, extract(epoch from d.retry_until - now())::float8 as seconds_left
)
select c.notification_id, c.attempts, c.seconds_left,
       case when octet_length(n.body) <= 262144 then n.body end as body
from claimed c join everyrun_queue.notifications n on n.notification_id = c.notification_id

-- name: body
select body from everyrun_queue.notifications where notification_id = $1

-- name: release
-- Gives back claims whose requests were not sent.
update everyrun_queue.notification_deliveries d
set not_before = now(), attempts = d.attempts - 1
from unnest($2::text[], $3::int[]) as given (notification_id, attempts)
where d.receiver_id = $1 and d.notification_id = given.notification_id and d.attempts = given.attempts
  and d.state = 'waiting'

-- name: store_outcomes
-- The condition on attempts keeps the outcome of a process that was thought to be dead from replacing a newer one.
update everyrun_queue.notification_deliveries d
set state = given.state,
    not_before = now() + make_interval(secs => given.seconds),
    ended_at = case when given.state <> 'waiting' then now() end,
    tries = case when jsonb_array_length(d.tries) >= 20 then d.tries - 0 else d.tries end || given.try::jsonb
from unnest($2::text[], $3::int[], $4::text[], $5::float8[], $6::text[])
     as given (notification_id, attempts, state, seconds, try)
where d.receiver_id = $1 and d.notification_id = given.notification_id and d.attempts = given.attempts
  and d.state = 'waiting'

-- name: has_succeeded
update everyrun_queue.receivers
set failures = 0, failing_since = null, not_before = null, last_error = null
where receiver_id = $1

-- name: has_failed
update everyrun_queue.receivers
set failures = failures + $2, failing_since = coalesce(failing_since, now()), last_error = $3,
    not_before = now() + make_interval(secs => $4)
where receiver_id = $1
returning failures

-- name: give_up_late
update everyrun_queue.notification_deliveries
set state = 'given_up', ended_at = now()
where ctid = any (array(
    select ctid from everyrun_queue.notification_deliveries
    where state = 'waiting' and retry_until <= now() and not_before <= now() limit 5000))
returning receiver_id

-- name: delete_old_deliveries
delete from everyrun_queue.notification_deliveries
where ctid = any (array(
    select d.ctid from everyrun_queue.notification_deliveries d
    join everyrun_queue.notifications n on n.notification_id = d.notification_id
    where n.created_at < now() - make_interval(secs => $1) and d.state <> 'waiting' limit 5000))

-- name: delete_deliveries_of_removed
delete from everyrun_queue.notification_deliveries
where ctid = any (array(
    select d.ctid from everyrun_queue.receivers r
    join everyrun_queue.notification_deliveries d on d.receiver_id = r.receiver_id
    where r.state = 'removed' limit 5000))

-- name: delete_old_notifications
delete from everyrun_queue.notifications
where ctid = any (array(
    select n.ctid from everyrun_queue.notifications n
    where n.created_at < now() - make_interval(secs => $1)
      and not exists (
          select from everyrun_queue.notification_deliveries d where d.notification_id = n.notification_id)
    limit 5000))

-- name: delete_removed_receivers
delete from everyrun_queue.receivers r
where r.state = 'removed'
  and not exists (select from everyrun_queue.notification_deliveries d where d.receiver_id = r.receiver_id)
  and not exists (select from everyrun_queue.receiver_changes c where c.receiver_id = r.receiver_id)

-- name: forget_previous_secrets
update everyrun_queue.receivers set previous_secret = null, previous_until = null where previous_until < now()

-- name: waiting
select r.receiver_id, count(d.notification_id) as waiting,
       coalesce(extract(epoch from now() - min(d.created_at)), 0)::float8 as oldest
from everyrun_queue.receivers r
left join everyrun_queue.notification_deliveries d on d.receiver_id = r.receiver_id and d.state = 'waiting'
where r.state <> 'removed' group by r.receiver_id
