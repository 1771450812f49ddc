"""Replay selected events of the log to a topic, an HTTP address or a file."""
