"""Replays: publish selected events again to a topic, an HTTP address or a file."""
