"""``match``: which input a run belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from everyrun.log.keys import lineage
from everyrun.projection.rules.merge import Binding

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
    """Describes a batch for matching: its attempt; if it was registered, its inputs by fingerprint.

    ``members`` are the ids of its inputs, if they are at hand.
    """

    batch_id: str
    chunk: str
    attempt: int
    inputs: Inputs | None = None
    members: frozenset[str] | None = None

    @property
    def home(self) -> tuple[str, int]:
        """The attempt that it is."""
        return self.chunk, self.attempt

    @property
    def key(self) -> str:
        """The Kafka key of its events and of its runs."""
        return lineage(self.chunk) if self.inputs is None else self.batch_id


class Unmatched(Struct, frozen=True):
    """No input: why, in one word that ``unmatched_runs.reason`` shows."""

    reason: str


def match(
    batch_id: str | None, batch: Batch | None, bindings: Sequence[Binding], fingerprints: Sequence[str] = ()
) -> list[str] | Unmatched:
    """Return the inputs that the run names, or why there is none. Nothing is guessed.

    The run belongs to the first of them that is an input of the batch; if none is, the reason is INPUT_UNKNOWN. A run
    of a batch that Everyrun sent names the inputs of its ``bindings`` to this very attempt; a run of a registered batch
    names the input whose metadata have one of the ``fingerprints``. Both are what the run was seen with, in the order
    of the log: the first that fits decides, since later ones may be of an update upstream.

    ``batch`` is the batch of that id, if it is known yet.
    """
    if batch_id is None:
        return Unmatched(NO_BATCH)
    if batch is None:
        return Unmatched(BATCH_UNKNOWN)
    if batch.inputs is not None:
        return _by_metadata(batch.inputs, fingerprints)
    if not bindings:
        return Unmatched(NO_KEY)
    named = [binding.input_id for binding in bindings if (binding.chunk, binding.attempt) == batch.home]
    return named or Unmatched(OTHER_BATCH)


def _by_metadata(inputs: Inputs, fingerprints: Sequence[str]) -> list[str] | Unmatched:
    for seen in fingerprints:
        found = inputs.get(seen, ())
        if found:
            return [found[0]] if len(found) == 1 else Unmatched(AMBIGUOUS)
    return Unmatched(METADATA_UNKNOWN)


def in_order(bindings: Iterable[Binding]) -> list[Binding]:
    """Return each binding once: by attempt, and those to one attempt in the order given.

    Bindings to one attempt lie in one partition, so that order is the log's; of two attempts there is no order.
    """
    return sorted(dict.fromkeys(bindings), key=lambda binding: (binding.chunk, binding.attempt))


def by_fingerprint(pairs: Iterable[tuple[str | None, str]]) -> dict[str, list[str]]:
    """Inputs by fingerprint, from pairs of fingerprint and input id; what has none is equal to nothing."""
    inputs: dict[str, list[str]] = {}
    for seen, input_id in pairs:
        if seen is not None:
            inputs.setdefault(seen, []).append(input_id)
    return inputs
