-- name: create
insert into everyrun_queue.tokens (token_id, name, hash, scopes, created_at, expires_at, created_by)
values ($1, $2, $3, $4, $5, $6, $7)

-- name: live
-- Returns at least one row, even if there is no token. caught_up is true if revocations were read from the log in this
-- incarnation of the database.
select recovery.incarnation is not distinct from everyrun_queue.incarnation() as caught_up,
       token_id, name, hash, scopes, expires_at
from everyrun_queue.token_recovery recovery
left join everyrun_queue.tokens on revoked_at is null and (expires_at is null or expires_at > now())

-- name: all
select token_id, name, scopes, created_at, expires_at, revoked_at, revoked_announced_at
from everyrun_queue.tokens order by created_at desc, token_id

-- name: revoke
update everyrun_queue.tokens
set revoked_at = coalesce(revoked_at, now()), revoked_by = coalesce(revoked_by, $2),
    revoked_reason = coalesce(revoked_reason, $3)
where token_id = $1
returning name, revoked_at < now() as was_revoked

-- name: is_announced
select revoked_announced_at is not null from everyrun_queue.tokens where token_id = $1
