"""The projection: the rules that turn events into rows, and ``apply``, which writes these rows to the result tables."""
