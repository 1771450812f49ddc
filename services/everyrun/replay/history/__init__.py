"""Show the history of an input, a run or a batch: every event that touched it, and what each changed."""
