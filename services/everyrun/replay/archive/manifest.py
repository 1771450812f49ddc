"""What an archive says of itself: a manifest a file, each with the hash of the one before. Pure.

The chain is one an archive: manifest 1 has no ``previous``, manifest n has the SHA-256 of manifest n-1 as it is
stored. Whoever knows the newest manifest's hash can therefore tell whether anything before it was touched.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from everyrun.errors import Invalid

FORMAT = 1
MANIFESTS = "manifests"
RECORDS = "records"
DIGESTS = "digests"
SIGNATURES = "signatures"
#: Bytes of each record's digest that are kept beside the file, to name a record that was changed.
SHORT = 8

_encode = msgspec.msgpack.Encoder().encode
_NUMBER = re.compile(r"(?:^|/)(\d{10})[.-]")


class Covered(msgspec.Struct, frozen=True):
    """What a file has of one partition: every record from ``first`` up to, without, ``end``."""

    partition: int
    first: int
    end: int
    count: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What one file of an archive holds. ``previous`` and the other hashes are SHA-256 in hexadecimal."""

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


class NotAManifestError(Invalid):
    """The bytes are no manifest of a format that is known; the text says why."""


def to_bytes(manifest: Manifest) -> bytes:
    """The manifest as it is stored."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def from_bytes(stored: bytes) -> Manifest:
    """Read a manifest. Raises NotAManifestError."""
    try:
        manifest = msgspec.json.decode(stored, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotAManifestError(str(error)) from None
    if manifest.format != FORMAT:
        raise NotAManifestError(f"its format is {manifest.format}, known is {FORMAT}: use a newer Everyrun")
    return manifest


def hash_of(stored: bytes) -> str:
    """The hash that the next manifest carries."""
    return hashlib.sha256(stored).hexdigest()


def manifest_path(number: int) -> str:
    """Where manifest ``number`` lies in the archive."""
    return f"{MANIFESTS}/{number:010d}.json"


def signature_path(number: int) -> str:
    """Where the signature of manifest ``number`` lies."""
    return f"{SIGNATURES}/{number:010d}.json"


def number_in(path: str) -> int | None:
    """The manifest number that a path of the archive belongs to; None where it is not named as ours are."""
    found = _NUMBER.search(path)
    return int(found.group(1)) if found else None


def record_path(topic: str, day: str, number: int, sha256: str) -> str:
    """Where the records of a file lie. The hash keeps two writers of one number from touching each other's file."""
    return f"{RECORDS}/topic={topic}/day={day}/{number:010d}-{sha256[:12]}.parquet"


def digest_path(number: int, sha256: str) -> str:
    """Where the digests of a file's records lie."""
    return f"{DIGESTS}/{number:010d}-{sha256[:12]}.parquet"


def digest(record: Any) -> bytes:
    """SHA-256 of a record: of [partition, offset, timestamp, timestamp type, key, headers, value] as MessagePack.

    The same for a record as Kafka gives it and as it comes out of an archive.
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
    """The content hash of a file: SHA-256 of its topic, a line feed, and the digests of its records in order."""

    def __init__(self, topic: str) -> None:
        self._hash = hashlib.sha256(topic.encode() + b"\n")
        self.count = 0

    def add(self, digests: Sequence[bytes]) -> None:
        """Take the next records' digests."""
        self._hash.update(b"".join(digests))
        self.count += len(digests)

    def hexdigest(self) -> str:
        """The hash so far."""
        return self._hash.hexdigest()


def ends(manifests: Iterable[Manifest]) -> dict[tuple[str, int], int]:
    """How far each partition is archived: by (topic, partition) the offset that is next."""
    found: dict[tuple[str, int], int] = {}
    for manifest in manifests:
        for covered in manifest.partitions:
            found[manifest.topic, covered.partition] = covered.end
    return found
