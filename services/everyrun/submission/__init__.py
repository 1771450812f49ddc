"""Submission: accepts inputs, keeps them in a queue, cuts them into chunks, and sends each chunk to Extend."""
