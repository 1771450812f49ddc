"""Audits: compare the tables with the log, and the log with itself; tables as of an earlier position."""
