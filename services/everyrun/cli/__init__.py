"""The command line, ``everyrun``."""
