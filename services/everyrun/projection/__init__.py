"""The projection: the rules that give events their meaning, and ``apply``, which brings them into the result tables."""
