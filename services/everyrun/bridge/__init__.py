"""Extend's webhooks in, ``run-observed`` out."""
