-- name: decisions
-- A page of decisions, the newest first. The table has few rows: a person or a rule makes each.
select event_id, kind, workflow_id, submission_id, chunk, attempt, batch_id, source, decided_by, reason, decided_at
from everyrun.decisions
where ($1::text is null or submission_id = $1)
  and ($2::text is null or kind = $2)
  and ($3::text is null or strpos(lower(coalesce(decided_by, 'Everyrun')), lower($3)) > 0)
  and ($4::timestamptz is null or decided_at >= $4)
  and ($5::timestamptz is null or (decided_at, event_id) < ($5, $6::text))
order by decided_at desc, event_id desc
limit $7
