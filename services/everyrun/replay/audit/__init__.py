"""Audit the tables and the log, and show the tables as of an earlier position of the log."""
