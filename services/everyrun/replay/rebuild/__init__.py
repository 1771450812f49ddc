"""Rebuilds: make every table again from the log, and swap the tables in."""
