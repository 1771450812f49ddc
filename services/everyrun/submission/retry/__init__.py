"""Give settled inputs a new try: choose them, store their new tries in the queue, and announce them in the log."""
