"""Everyrun: every run accounted for."""

__version__ = "0.1.0"
