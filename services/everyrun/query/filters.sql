-- Conditions on rows of everyrun.results, without a statement of their own. Python joins those that a request asks for,
-- and numbers their parameters. No text of a request becomes part of a statement.

-- name: submission_id
-- A range of the primary key. The last comparison excludes ids that only begin like the submission's.
input_id >= $1 || ':' and input_id < $1 || ';' and submission_id = $1

-- name: input_id
input_id = $1

-- name: external_id
-- Each submission id together with the external id makes one input id.
input_id = any (array(select submission_id || ':' || $1 from everyrun.submissions))

-- name: batch_id
-- A batch contains the list of its input ids.
input_id = any (array(select unnest(input_ids) from everyrun.batches where batch_id = $1)) and batch_id = $1

-- name: status
status = any ($1::text[])

-- name: failure_reason
failure_reason = any ($1::text[])

-- name: metadata
-- A value that is not a text is compared as its JSON: 7, true.
metadata ->> $1::text = $2::text

-- name: settled_since
settled_at >= $1::timestamptz

-- name: settled_until
settled_at < $1::timestamptz

-- name: observed_since
observed_at >= $1::timestamptz

-- name: observed_until
observed_at < $1::timestamptz

-- name: text
-- The text occurs anywhere, with any capitals.
(strpos(lower(external_id), lower($1)) > 0
 or strpos(lower(coalesce(file ->> 'name', '')), lower($1)) > 0
 or strpos(lower(coalesce(file ->> 'url', '')), lower($1)) > 0
 or strpos(lower(coalesce(failure_reason, '')), lower($1)) > 0
 or strpos(lower(coalesce(failure_message, '')), lower($1)) > 0
 or exists (select from jsonb_each_text(metadata) m where strpos(lower(m.value), lower($1)) > 0))

-- name: after_input_id
input_id > $1

-- name: before_input_id
input_id < $1

-- name: after_position
(position, input_id) > ($1::int, $2)

-- name: before_position
(position, input_id) < ($1::int, $2)

-- name: after_settled_at
(settled_at, input_id) > ($1::timestamptz, $2)

-- name: before_settled_at
(settled_at, input_id) < ($1::timestamptz, $2)

-- name: after_observed_at
(observed_at, input_id) > ($1::timestamptz, $2)

-- name: before_observed_at
(observed_at, input_id) < ($1::timestamptz, $2)

-- name: has_settled_at
settled_at is not null

-- name: has_observed_at
observed_at is not null

-- name: changed_since
-- Rows that were written by the transaction with the number $1, or by one with a greater number. The column xmin has the
-- low 32 bits of the number of the transaction that wrote a row; the others follow, because the number is not greater
-- than that of the snapshot.
((select pg_snapshot_xmax(pg_current_snapshot())::text::bigint) - xmin::text::bigint) & 4294967295
    <= (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint) - $1::bigint
