"""Recovery: after the queue was restored from a backup, restore from the log what it lost."""
