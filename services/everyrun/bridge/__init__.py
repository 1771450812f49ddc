"""The bridge: receives Extend's webhooks and writes them to the log as ``run-observed`` events."""
