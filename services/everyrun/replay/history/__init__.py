"""History: every event that concerns an input, a run or a batch, found by an index."""
