"""Dispatch: send the queue's chunks to Extend, and resolve calls whose outcome is unknown."""
