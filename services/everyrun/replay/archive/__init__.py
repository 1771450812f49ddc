"""Archives: write the log to files, read them, verify them."""
