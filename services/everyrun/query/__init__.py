"""Query: the read API over the projection."""
