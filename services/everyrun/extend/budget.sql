-- name: lease
-- Lease turns from the first free one on, $2 seconds in all. Concurrent leases of a category wait for each other. Times
-- are the server's, so the clocks of processes need not agree. If the clock was set back, the wait is at most $3 seconds.
insert into everyrun_queue.budgets as b (category, free_at)
values ($1, clock_timestamp() + make_interval(secs => $2))
on conflict (category) do update
set free_at = greatest(least(b.free_at, clock_timestamp() + make_interval(secs => $3)), clock_timestamp())
    + make_interval(secs => $2)
returning extract(epoch from free_at - clock_timestamp())::float8 - $2 as first_in

-- name: pause
insert into everyrun_queue.budgets as b (category, free_at)
values ($1, clock_timestamp() + make_interval(secs => $2))
on conflict (category) do update set free_at = greatest(b.free_at, excluded.free_at)
