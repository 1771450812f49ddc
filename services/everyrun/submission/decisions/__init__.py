"""Decisions of people: chunks in doubt, pauses, and quarantined messages."""
