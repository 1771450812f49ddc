"""``match``: which input a run belongs to."""

from __future__ import annotations

from msgspec import Struct

from everyrun.projection.merge import Binding

BATCH_UNKNOWN = "batch_unknown"
NO_BATCH = "no_batch"
NO_KEY = "no_reserved_key"
OTHER_BATCH = "reserved_key_of_another_batch"
INPUT_UNKNOWN = "input_unknown"


class Batch(Struct, frozen=True):
    """What matching needs of a batch: the attempt that it is."""

    batch_id: str
    chunk: str
    attempt: int


class Unmatched(Struct, frozen=True):
    """No input: why, in one word that ``unmatched_runs.reason`` shows."""

    reason: str


def match(batch_id: str | None, batch: Batch | None, binding: Binding | None) -> str | Unmatched:
    """The input id, or why there is none. By ``batchId`` and the reserved key, both; nothing is guessed.

    ``batch`` is the batch of that id, where it is known yet. That the input is one of the batch's is for the caller
    to look up; where it is not, the reason is INPUT_UNKNOWN.
    """
    if batch_id is None:
        return Unmatched(NO_BATCH)
    if batch is None:
        return Unmatched(BATCH_UNKNOWN)
    if binding is None:
        return Unmatched(NO_KEY)
    if (binding.chunk, binding.attempt) != (batch.chunk, batch.attempt):
        return Unmatched(OTHER_BATCH)
    return binding.input_id
