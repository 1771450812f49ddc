"""Recovery: put back from the log what a restored queue has lost."""
