"""Find the runs and changes that no webhook reported.

The reconciler completes deferred deliveries: it fetches the payloads to which webhooks only link. It polls open
batches. And it sweeps workflows, to find batches that Everyrun does not know.
"""
