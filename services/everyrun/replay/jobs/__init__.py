"""Run the replay service's jobs, one after another. Jobs are kept in Postgres."""
