"""Dispatch: send the chunks in the queue to Extend, and resolve calls whose outcome is unknown."""
