"""The log again: archives, history, replays, rebuilds."""
