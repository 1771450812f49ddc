"""Talk to Extend: its API, the request budget, webhook signatures, the reserved metadata key."""
