-- name: lease
-- So many turns on from the first free one. Waits behind whoever leases the same category just now; the times are the
-- server's, so that clocks of processes need not agree. A clock that was set back cannot hold anyone up for long.
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
