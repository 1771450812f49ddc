"""The rules of the projection, as pure functions."""
