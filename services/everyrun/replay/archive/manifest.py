"""Describe the files of an archive in manifests, each with the hash of the previous one. Pure.

The manifests of an archive are numbered from 1 and form a chain: the field ``previous`` of each manifest, except the
first, is the SHA-256 of the stored bytes of the manifest before it. So anyone who knows the hash of the newest manifest
can detect a change in any earlier one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from everyrun.errors import Invalid
from everyrun.log.reading import LogRecord

FORMAT = 1
MANIFESTS = "manifests"
RECORDS = "records"
DIGESTS = "digests"
SIGNATURES = "signatures"
#: The file of digests keeps this many bytes of each record's digest. If a file of records was changed, these bytes show
#: which of its records differ.
SHORT = 8

_encode = msgspec.msgpack.Encoder().encode
_NUMBER = re.compile(r"(?:^|/)(\d{10})[.-]")


class Covered(msgspec.Struct, frozen=True):
    """The offsets of one partition that a file covers: from ``first`` up to, but not including, ``end``."""

    partition: int
    first: int
    end: int
    count: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The description of one file of records and of the file with the digests of these records.

    ``file`` and ``digests`` are the paths of these two files, ``sha256`` and ``digests_sha256`` are their hashes, and
    ``bytes`` is the size of the file of records. ``content`` is the hash of the records themselves (see
    :class:`Content`), and ``previous`` that of the manifest before. ``archive`` is the id of the archive. All hashes
    are SHA-256 in hexadecimal.
    """

    format: int = FORMAT
    archive: str
    number: int
    previous: str | None
    cluster_id: str
    topic: str
    day: str
    file: str
    bytes: int
    sha256: str
    digests: str
    digests_sha256: str
    count: int
    content: str
    partitions: list[Covered]


class ManifestFormatError(Invalid):
    """The bytes are not a manifest, or its format is unknown to this version of Everyrun."""


def to_bytes(manifest: Manifest) -> bytes:
    """Return the bytes of a manifest, as they are stored."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def from_bytes(stored: bytes) -> Manifest:
    """Decode a stored manifest. Raises ManifestFormatError."""
    try:
        manifest = msgspec.json.decode(stored, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ManifestFormatError(str(error)) from None
    if manifest.format != FORMAT:
        raise ManifestFormatError(f"its format is {manifest.format}, this Everyrun reads {FORMAT}: use a newer one")
    return manifest


def hash_of(stored: bytes) -> str:
    """Return the hash of a stored manifest: the ``previous`` of the next manifest."""
    return hashlib.sha256(stored).hexdigest()


def manifest_path(number: int) -> str:
    """Return the path of a manifest."""
    return f"{MANIFESTS}/{number:010d}.json"


def signature_path(number: int) -> str:
    """Return the path of the signature of a manifest."""
    return f"{SIGNATURES}/{number:010d}.json"


def number_in(path: str) -> int | None:
    """Return the number of the manifest from the path of a file in the archive; None if the path has another form."""
    found = _NUMBER.search(path)
    return int(found.group(1)) if found else None


def record_path(topic: str, day: str, number: int, sha256: str) -> str:
    """Return the path of a file of records.

    The path contains a part of the file's hash, so that two runs with the same number never overwrite each other's
    file.
    """
    return f"{RECORDS}/topic={topic}/day={day}/{number:010d}-{sha256[:12]}.parquet"


def digest_path(number: int, sha256: str) -> str:
    """Return the path of a file of digests."""
    return f"{DIGESTS}/{number:010d}-{sha256[:12]}.parquet"


class StampedRecord(LogRecord, Protocol):
    """A record that also says who set its timestamp."""

    @property
    def timestamp_type(self) -> int:
        """1 if the broker set the timestamp when it appended the record, 0 if the producer did."""


def digest(record: StampedRecord) -> bytes:
    """Return the SHA-256 of a record. A record from Kafka and its copy from an archive have the same digest.

    The hash is that of [partition, offset, timestamp, timestamp type, key, headers, value] encoded as MessagePack.
    """
    return hashlib.sha256(
        _encode(
            (
                record.partition,
                record.offset,
                record.timestamp,
                record.timestamp_type,
                record.key,
                record.headers,
                record.value,
            )
        )
    ).digest()


class Content:
    """The content hash of a file: the SHA-256 of its topic, a line feed, and the digests of its records in order."""

    def __init__(self, topic: str) -> None:
        self._hash = hashlib.sha256(topic.encode() + b"\n")
        self.count = 0

    def add(self, digests: Sequence[bytes]) -> None:
        """Add the digests of the next records."""
        self._hash.update(b"".join(digests))
        self.count += len(digests)

    def hexdigest(self) -> str:
        """Return the hash of the records so far, in hexadecimal."""
        return self._hash.hexdigest()


def archived_ends(manifests: Iterable[Manifest]) -> dict[tuple[str, int], int]:
    """Return the next offset to archive, by topic and partition."""
    found: dict[tuple[str, int], int] = {}
    for manifest in manifests:
        for covered in manifest.partitions:
            found[manifest.topic, covered.partition] = covered.end
    return found
