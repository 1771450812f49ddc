-- name: create
insert into everyrun_queue.tokens (token_id, name, hash, scopes, created_at, expires_at) values ($1, $2, $3, $4, $5, $6)

-- name: live
select token_id, name, hash, scopes, expires_at
from everyrun_queue.tokens where revoked_at is null and (expires_at is null or expires_at > now())

-- name: all
select token_id, name, scopes, created_at, expires_at, revoked_at
from everyrun_queue.tokens order by created_at desc, token_id

-- name: revoke
update everyrun_queue.tokens set revoked_at = coalesce(revoked_at, now()) where token_id = $1 returning name
