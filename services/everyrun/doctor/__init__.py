"""Check everything that an installation needs, and say what is wrong and what to do (``everyrun doctor``)."""
