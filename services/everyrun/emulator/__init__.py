"""Stand in for Extend in development and tests: behave as Extend documents it, and make faults on demand.

The sources are Extend's Python SDK 1.20.0 (paths, fields, types) and docs.extend.ai (rules, webhooks, limits). Where
neither says what Extend does, the emulator does something plausible, and a comment says so.
"""
