"""Measure speeds, each next to its ceiling in the same run: ``make bench``, or ``python -m benchmarks [NAME...]``."""
