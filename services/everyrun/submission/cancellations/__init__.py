"""Cancellations: what is not sent is cancelled here, and what runs is cancelled at Extend."""
