"""Intake: read the rows of an upload, check them, and accept a submission into the queue."""
