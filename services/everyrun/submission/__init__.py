"""Submission: takes inputs in, keeps them in a queue, cuts them into batches and calls Extend."""
