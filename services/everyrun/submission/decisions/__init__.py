"""Decisions of people about chunks in doubt, pauses and quarantined messages."""
