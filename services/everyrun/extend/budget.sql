-- name: lease
-- Lease the next free turns, which together last $2 seconds, and return the seconds until the first of them. Concurrent
-- leases of one category wait for each other. All times are those of the database server, so the clocks of the
-- processes need not agree. If the server's clock was set back, the wait is at most $3 seconds.
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
