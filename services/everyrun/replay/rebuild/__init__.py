"""Rebuild every table from the log, and swap the rebuilt tables in."""
