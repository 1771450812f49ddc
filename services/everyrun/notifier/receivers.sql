-- name: add
insert into everyrun_queue.receivers (receiver_id, url, format, events, workflows, description, secret, created_by)
values ($1, $2, $3, $4, $5, $6, $7, $8)

-- name: note_change
insert into everyrun_queue.receiver_changes (change_id, receiver_id, change, changed_by) values ($1, $2, $3, $4)

-- name: unannounced_changes
select c.change_id, c.receiver_id, c.change, c.changed_by, c.changed_at, r.url, r.events, r.workflows
from everyrun_queue.receiver_changes c join everyrun_queue.receivers r on r.receiver_id = c.receiver_id
order by c.changed_at, c.change_id limit 100

-- name: mark_announced
delete from everyrun_queue.receiver_changes where change_id = any ($1::text[])

-- name: add_starts
insert into everyrun_queue.receiver_starts (receiver_id, topic, partition, first_offset, cluster_id)
select $1, topic, partition, first_offset, $5
from unnest($2::text[], $3::int[], $4::bigint[]) as given (topic, partition, first_offset)

-- name: listed
-- Receivers with the numbers of their deliveries by state; $1 chooses one, null all.
select r.receiver_id, r.url, r.format, r.events, r.workflows, r.description, r.state, r.created_at, r.created_by,
       r.failures, r.failing_since, r.last_error, r.previous_until,
       coalesce(d.waiting, 0) as waiting, coalesce(d.delivered, 0) as delivered, coalesce(d.given_up, 0) as given_up,
       d.oldest_waiting
from everyrun_queue.receivers r
left join lateral (
    select count(*) filter (where state = 'waiting') as waiting, count(*) filter (where state = 'delivered') as delivered,
           count(*) filter (where state = 'given_up') as given_up,
           min(created_at) filter (where state = 'waiting') as oldest_waiting
    from everyrun_queue.notification_deliveries where receiver_id = r.receiver_id
) d on true
where r.state <> 'removed' and ($1::text is null or r.receiver_id = $1)
order by r.created_at, r.receiver_id

-- name: target
select receiver_id, url, format, secret, previous_secret, previous_until
from everyrun_queue.receivers where receiver_id = $1 and state <> 'removed'

-- name: set_state
-- A resumed receiver gets its next request at once, even if earlier requests failed.
update everyrun_queue.receivers set state = $2, not_before = null
where receiver_id = $1 and state <> 'removed'

-- name: remove
update everyrun_queue.receivers set state = 'removed', secret = '', previous_secret = null, previous_until = null
where receiver_id = $1 and state <> 'removed'
returning (select count(*) from everyrun_queue.notification_deliveries d
           where d.receiver_id = $1 and d.state = 'waiting') as waiting

-- name: remove_starts
delete from everyrun_queue.receiver_starts where receiver_id = $1

-- name: rotate
update everyrun_queue.receivers
set previous_secret = case when $3 > 0 then secret end,
    previous_until = case when $3 > 0 then now() + make_interval(secs => $3) end, secret = $2
where receiver_id = $1 and state <> 'removed'
returning previous_until

-- name: deliveries
-- The newest deliveries first; the page begins after the delivery ($4, $5).
select d.notification_id, n.event, n.subject, d.state, d.attempts, d.created_at, d.ended_at,
       case when d.state = 'waiting' then d.not_before end as next_at, d.tries
from everyrun_queue.notification_deliveries d
join everyrun_queue.notifications n on n.notification_id = d.notification_id
where d.receiver_id = $1 and ($2::text is null or d.state = $2) and ($3::text is null or n.event = $3)
  and ($4::timestamptz is null or (d.created_at, d.notification_id) < ($4, $5))
order by d.created_at desc, d.notification_id desc limit $6

-- name: resend
-- A delivery that is waiting becomes due at once.
update everyrun_queue.notification_deliveries
set state = 'waiting', not_before = now(), ended_at = null, retry_until = now() + make_interval(secs => $3)
where receiver_id = $1 and notification_id = any ($2::text[])
returning notification_id

-- name: resend_all
-- Resends up to $6 deliveries in one of the states, of events read since $4. The caller repeats this until it returns
-- none. A delivery that was resent, and has ended again, is not chosen again: $5 is the time of the first call.
update everyrun_queue.notification_deliveries
set state = 'waiting', not_before = now(), ended_at = null, retry_until = now() + make_interval(secs => $3)
where ctid = any (array(
    select ctid from everyrun_queue.notification_deliveries
    where receiver_id = $1 and state = any ($2::text[]) and created_at >= $4 and ended_at <= $5
    limit $6))
returning notification_id
