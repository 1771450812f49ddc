"""Jobs of the replay service, run one after another and kept in Postgres."""
