"""Match a run to its input: by the reserved metadata key, or by a fingerprint of its metadata. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import rfc8785
from msgspec import Struct

from everyrun.extend import reserved
from everyrun.log.keys import lineage
from everyrun.projection.rules.merge import AttemptKey, Binding

BATCH_UNKNOWN = "batch_unknown"
NO_BATCH = "no_batch"
NO_KEY = "no_reserved_key"
OTHER_BATCH = "reserved_key_of_another_batch"
INPUT_UNKNOWN = "input_unknown"
AMBIGUOUS = "ambiguous_metadata"
METADATA_UNKNOWN = "metadata_unknown"

#: Every reason that ``unmatched_runs.reason`` shows.
REASONS = (BATCH_UNKNOWN, NO_BATCH, NO_KEY, OTHER_BATCH, INPUT_UNKNOWN, AMBIGUOUS, METADATA_UNKNOWN)

#: Extend removes characters from these tags (SDK 1.20.0, types/run_metadata.py), so they come back changed.
_USAGE_TAGS = "extend:usage_tags"
#: The largest integer that every JSON reader keeps exact. RFC 8785 and Extend read larger ones as doubles.
_SAFE = 2**53 - 1

Inputs = Mapping[str, Sequence[str]]
"""The inputs of a registered batch by the fingerprint of their metadata."""


class Batch(Struct, frozen=True):
    """Describes a batch for matching: its attempt and, if it was registered, its inputs by fingerprint.

    ``members`` are the ids of its inputs, if known.
    """

    batch_id: str
    chunk: str
    attempt: int
    inputs: Inputs | None = None
    members: frozenset[str] | None = None

    @property
    def attempt_key(self) -> AttemptKey:
        """The attempt that became this batch."""
        return self.chunk, self.attempt

    @property
    def key(self) -> str:
        """The Kafka key of its events and of its runs."""
        return lineage(self.chunk) if self.inputs is None else self.batch_id


class Unmatched(Struct, frozen=True):
    """Says why a run matches no input: one of ``REASONS``."""

    reason: str


def match(
    batch_id: str | None, batch: Batch | None, bindings: Sequence[Binding], fingerprints: Sequence[str] = ()
) -> list[str] | Unmatched:
    """Return the inputs that the run may belong to, or why there is none. Nothing is guessed.

    The run belongs to the first of them that is an input of the batch; if none is, the reason is INPUT_UNKNOWN.

    - A run of a batch that Everyrun sent names inputs in its ``bindings``; only bindings to this attempt count.
    - A run of a registered batch belongs to the input whose metadata has one of the run's ``fingerprints``.

    Both are given in the order of the log. The first that fits decides, since a later one may come from an update at
    Extend. ``batch`` is None if no event has named the batch so far.
    """
    if batch_id is None:
        return Unmatched(NO_BATCH)
    if batch is None:
        return Unmatched(BATCH_UNKNOWN)
    if batch.inputs is not None:
        return _by_metadata(batch.inputs, fingerprints)
    if not bindings:
        return Unmatched(NO_KEY)
    named = [binding.input_id for binding in bindings if (binding.chunk, binding.attempt) == batch.attempt_key]
    return named or Unmatched(OTHER_BATCH)


def _by_metadata(inputs: Inputs, fingerprints: Sequence[str]) -> list[str] | Unmatched:
    for seen in fingerprints:
        found = inputs.get(seen, ())
        if found:
            return [found[0]] if len(found) == 1 else Unmatched(AMBIGUOUS)
    return Unmatched(METADATA_UNKNOWN)


def in_order(bindings: Iterable[Binding]) -> list[Binding]:
    """Return each binding once, sorted by attempt; bindings to one attempt keep their order.

    Bindings to one attempt lie in one partition, so their order is the log's. Those to two attempts have no order.
    """
    return sorted(dict.fromkeys(bindings), key=lambda binding: (binding.chunk, binding.attempt))


def by_fingerprint(pairs: Iterable[tuple[str | None, str]]) -> dict[str, list[str]]:
    """Return inputs by fingerprint, from pairs of fingerprint and input id. Without a fingerprint nothing matches."""
    inputs: dict[str, list[str]] = {}
    for seen, input_id in pairs:
        if seen is not None:
            inputs.setdefault(seen, []).append(input_id)
    return inputs


def fingerprint(metadata: bytes) -> str | None:
    """Return the SHA-256 of the metadata as RFC 8785 JSON, without Extend's usage tags and Everyrun's reserved key.

    Returns None if the metadata is no object or has no RFC 8785 form: it then matches nothing.
    """
    try:
        value = msgspec.json.decode(metadata)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            return None
        own = {key: _double(item) for key, item in value.items() if key not in (_USAGE_TAGS, reserved.KEY)}
        return hashlib.sha256(rfc8785.dumps(own)).hexdigest()
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, OverflowError, RecursionError):
        return None


def _double(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _double(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_double(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _SAFE:
        return float(value)
    return value
