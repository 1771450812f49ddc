"""Find the runs and changes that no webhook reported.

The reconciler fetches payloads behind the links in webhooks, polls open batches, and sweeps workflows for batches that
Everyrun does not know.
"""
