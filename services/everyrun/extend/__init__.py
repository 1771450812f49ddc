"""Extend: its API as a client, its signatures, the reserved metadata key."""
