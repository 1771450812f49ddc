"""Find what webhooks did not report: complete deferred deliveries, poll open batches, sweep for unknown batches."""
