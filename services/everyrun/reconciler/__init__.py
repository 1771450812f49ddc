"""What webhooks did not tell: deferred deliveries fetched, open batches polled, unknown batches found."""
