"""``match``: which input a run belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from everyrun.projection.merge import Binding

BATCH_UNKNOWN = "batch_unknown"
NO_BATCH = "no_batch"
NO_KEY = "no_reserved_key"
OTHER_BATCH = "reserved_key_of_another_batch"
INPUT_UNKNOWN = "input_unknown"
AMBIGUOUS = "ambiguous_metadata"
METADATA_UNKNOWN = "metadata_unknown"

#: Every reason that ``unmatched_runs.reason`` shows.
REASONS = (BATCH_UNKNOWN, NO_BATCH, NO_KEY, OTHER_BATCH, INPUT_UNKNOWN, AMBIGUOUS, METADATA_UNKNOWN)

Inputs = Mapping[str, Sequence[str]]
"""The inputs of a registered batch by the fingerprint of their metadata."""


class Batch(Struct, frozen=True):
    """What matching needs of a batch: the attempt that it is; of a registered one its inputs, by fingerprint."""

    batch_id: str
    chunk: str
    attempt: int
    inputs: Inputs | None = None


class Unmatched(Struct, frozen=True):
    """No input: why, in one word that ``unmatched_runs.reason`` shows."""

    reason: str


def match(
    batch_id: str | None, batch: Batch | None, binding: Binding | None, fingerprints: Sequence[str] = ()
) -> str | Unmatched:
    """The input id, or why there is none. Nothing is guessed.

    A run of a batch that Everyrun sent: by ``batchId`` and the reserved key, both. That the input is one of the
    batch's is for the caller to look up; where it is not, the reason is INPUT_UNKNOWN. A run of a registered batch:
    by ``batchId`` and ``fingerprints``, those of the metadata it was seen with, in the order of the log.

    ``batch`` is the batch of that id, where it is known yet.
    """
    if batch_id is None:
        return Unmatched(NO_BATCH)
    if batch is None:
        return Unmatched(BATCH_UNKNOWN)
    if batch.inputs is not None:
        return _by_metadata(batch.inputs, fingerprints)
    if binding is None:
        return Unmatched(NO_KEY)
    if (binding.chunk, binding.attempt) != (batch.chunk, batch.attempt):
        return Unmatched(OTHER_BATCH)
    return binding.input_id


def _by_metadata(inputs: Inputs, fingerprints: Sequence[str]) -> str | Unmatched:
    """The first metadata that any input has decides: later ones may be of an update."""
    for seen in fingerprints:
        found = inputs.get(seen, ())
        if found:
            return found[0] if len(found) == 1 else Unmatched(AMBIGUOUS)
    return Unmatched(METADATA_UNKNOWN)


def by_fingerprint(pairs: Iterable[tuple[str | None, str]]) -> dict[str, list[str]]:
    """Inputs by fingerprint, from pairs of fingerprint and input id; what has none is equal to nothing."""
    inputs: dict[str, list[str]] = {}
    for seen, input_id in pairs:
        if seen is not None:
            inputs.setdefault(seen, []).append(input_id)
    return inputs
