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

#: The metadata key of Extend's usage tags. Extend removes some characters from these tags (SDK 1.20.0,
#: types/run_metadata.py), so they may come back changed, and a fingerprint must not depend on them.
_USAGE_TAGS = "extend:usage_tags"
#: The largest integer that every JSON reader keeps exactly. RFC 8785 and Extend read a larger integer as a 64-bit
#: float, which may round it.
_SAFE = 2**53 - 1

Inputs = Mapping[str, Sequence[str]]
"""Ids of the inputs of a registered batch, by the fingerprint of their metadata. Inputs may share a fingerprint."""


class Batch(Struct, frozen=True):
    """The facts about a batch that matching needs.

    ``inputs_by_fingerprint`` is None if Everyrun sent the batch: only a registered batch needs it. ``members`` holds
    the ids of the batch's inputs, or None if they were not read.
    """

    batch_id: str
    chunk: str
    attempt: int
    inputs_by_fingerprint: Inputs | None = None
    members: frozenset[str] | None = None

    @property
    def attempt_key(self) -> AttemptKey:
        """The attempt that started this batch."""
        return self.chunk, self.attempt

    @property
    def key(self) -> str:
        """The Kafka key of the batch's events and runs."""
        return lineage(self.chunk) if self.inputs_by_fingerprint is None else self.batch_id


class Unmatched(Struct, frozen=True):
    """Says why a run matches no input: one of ``REASONS``."""

    reason: str


def match(
    batch_id: str | None, batch: Batch | None, bindings: Sequence[Binding], fingerprints: Sequence[str] = ()
) -> list[str] | Unmatched:
    """Return the ids of the inputs that the run may belong to, or why there are none. Nothing is guessed.

    The run belongs to the first of these inputs that is an input of the batch. The caller finds out which one that is.
    If there is none, the caller uses the reason INPUT_UNKNOWN, which this function never returns.

    - A run of a batch that Everyrun sent names its input in ``bindings``. Bindings to other attempts are ignored.
    - A run of a registered batch belongs to the input whose metadata has one of the run's ``fingerprints``.

    ``fingerprints``, and the bindings to one attempt, are in the order of the log. The first fingerprint or binding
    that fits decides, because somebody may have changed the metadata at Extend later. ``batch`` is None if no event has
    named the batch so far.
    """
    if batch_id is None:
        return Unmatched(NO_BATCH)
    if batch is None:
        return Unmatched(BATCH_UNKNOWN)
    if batch.inputs_by_fingerprint is not None:
        return _by_metadata(batch.inputs_by_fingerprint, fingerprints)
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


def unique_by_attempt(bindings: Iterable[Binding]) -> list[Binding]:
    """Return each binding once, sorted by attempt. Bindings to the same attempt keep the order in which they are given.

    Records with bindings to the same attempt lie in one partition, so the log gives these bindings an order. Records
    with bindings to different attempts may lie in different partitions, which have no common order. So these bindings
    are sorted by attempt.
    """
    return sorted(dict.fromkeys(bindings), key=lambda binding: (binding.chunk, binding.attempt))


def by_fingerprint(pairs: Iterable[tuple[str | None, str]]) -> dict[str, list[str]]:
    """Group input ids by fingerprint, from pairs (fingerprint, input id). Inputs without a fingerprint are left out."""
    inputs: dict[str, list[str]] = {}
    for seen, input_id in pairs:
        if seen is not None:
            inputs.setdefault(seen, []).append(input_id)
    return inputs


def fingerprint(metadata: bytes) -> str | None:
    """Return the SHA-256 of the metadata in the canonical form of RFC 8785, so that equal metadata has an equal hash.

    Extend's usage tags and Everyrun's reserved key are left out. Returns None if the metadata is not a JSON object or
    cannot be written in the canonical form. Such metadata matches nothing.
    """
    try:
        value = msgspec.json.decode(metadata)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            return None
        own = {key: _large_ints_to_float(item) for key, item in value.items() if key not in (_USAGE_TAGS, reserved.KEY)}
        return hashlib.sha256(rfc8785.dumps(own)).hexdigest()
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, OverflowError, RecursionError):
        return None


def _large_ints_to_float(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _large_ints_to_float(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_large_ints_to_float(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _SAFE:
        return float(value)
    return value
