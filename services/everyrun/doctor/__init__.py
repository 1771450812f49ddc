"""The doctor: looks at everything a set-up needs, and says what is wrong and what to do. It is no service."""
