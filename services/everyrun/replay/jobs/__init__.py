"""Run the jobs of the replay service, one after another. The jobs are stored in Postgres."""
