"""Archive the log as Parquet files, read an archive, and verify it."""
