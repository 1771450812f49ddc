"""Stand in for Extend in development and tests: faithful to its contract, with faults on demand.

Sources: Extend's Python SDK 1.20.0 (paths, fields, types) and docs.extend.ai (rules, webhooks, limits). Where
these are silent, the emulator does what is plausible, and a comment says so.
"""
