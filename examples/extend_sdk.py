"""Send files to Extend with Extend's own SDK, and wait for the results. Nothing in this script knows Everyrun.

    EXTEND_BASE_URL=https://api.extend.ai EXTEND_API_KEY=sk_... python examples/extend_sdk.py WORKFLOW FILE...

It runs unchanged against Everyrun: set EXTEND_BASE_URL to Everyrun's drop-in endpoint (dropin_url in endpoints.json),
and EXTEND_API_KEY to a token of Everyrun. See docs/how-to/drop-in.md.

It prints one line for each file, and ends with 1 if a run did not succeed. Install the SDK with: pip install extend-ai
"""

import os
import sys
import time
from pathlib import Path

from extend_ai import Extend

FINAL = {"PROCESSED", "FAILED", "CANCELLED", "REJECTED"}


def every_run(client: Extend, batch_id: str) -> list:
    """Return the summaries of all runs of a batch."""
    runs, token = [], None
    while True:
        page = client.workflow_runs.list(batch_id=batch_id, max_page_size=100, next_page_token=token)
        runs += page.data
        token = page.next_page_token
        if not token:
            return runs


def main(workflow: str, files: list[str]) -> int:
    """Send the files as one batch, and print the result of each."""
    client = Extend(token=os.environ["EXTEND_API_KEY"], base_url=os.environ["EXTEND_BASE_URL"])
    inputs = []
    for path in files:
        with Path(path).open("rb") as content:
            uploaded = client.files.upload(file=(Path(path).name, content, "application/octet-stream"))
        inputs.append({"file": {"id": uploaded.id}, "metadata": {"path": path}})
    batch_id = client.workflow_runs.create_batch(workflow={"id": workflow}, inputs=inputs).batch_id
    print(f"batch {batch_id}", flush=True)
    while True:
        runs = every_run(client, batch_id)
        # Count the runs: a batch is done when every input has a run, and every run has ended.
        if len(runs) == len(inputs) and all(run.status.value in FINAL for run in runs):
            break
        time.sleep(1)
    for run in runs:
        whole = client.workflow_runs.retrieve(run.id)
        print(f"{whole.metadata['path']}: {whole.status.value} {whole.failure_reason or ''}".rstrip(), flush=True)
    return 0 if all(run.status.value == "PROCESSED" for run in runs) else 1


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
