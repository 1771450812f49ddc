"""Verify an archive: find every file and record that is missing, changed, added or reordered.

This module has over 300 lines, because all checks of an archive share the manifests that were read and the list of
defects.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from everyrun.replay.archive import manifest as manifests
from everyrun.replay.archive import signing as signatures
from everyrun.replay.archive.live_log import LiveLog, PartitionOffset, RecordDigest
from everyrun.replay.archive.manifest import SHORT, Content, Manifest, digest
from everyrun.replay.archive.object_store import ObjectStore
from everyrun.replay.errors import NoArchiveError
from everyrun.replay.progress import OnProgress, no_progress
from everyrun.settings import Settings

#: Maximum number of differences that are listed for one file; further differences are only counted.
LISTED = 100


class ArchiveDefect(NamedTuple):
    """Something in an archive that is not as it was written.

    ``file`` is a path in the archive. If the defect concerns a record, ``topic``, ``partition`` and ``offset`` name the
    record.
    """

    what: str
    file: str
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None

    def __str__(self) -> str:
        record = f"{self.topic}/{self.partition}@{self.offset}: " if self.offset is not None else ""
        return f"{record}{self.what} ({self.file})"


class VerifyResult(NamedTuple):
    """The result of a verification.

    ``files`` and ``records`` count what was checked. ``number`` and ``hash`` are those of the newest manifest, and
    ``signed`` is the number of the newest manifest that has a signature. ``findings`` are the defects; ``notes`` are
    remarks that are not defects.
    """

    files: int
    records: int
    number: int
    hash: str | None
    signed: int | None
    findings: list[ArchiveDefect]
    notes: list[str]


async def verify(
    location: str,
    *,
    public_key: Ed25519PublicKey | None = None,
    head: str | None = None,
    against_log: Settings | None = None,
    on_progress: OnProgress = no_progress,
) -> VerifyResult:
    """Check every manifest, file and record of an archive.

    - If ``public_key`` is given, the newest manifest must have a signature that this key confirms.
    - ``head`` is a manifest's hash that somebody noted earlier; the chain must still contain this manifest.
    - If ``against_log`` is given, every record is compared with the live log that these settings name.

    Raises NoArchiveError if there is no archive, FileNotFoundError if there is no folder, and ArchiveError if another
    log was archived.
    """
    store = ObjectStore(location)
    check = _Check(store)
    await check.chain()
    await check.files()
    await check.signatures(public_key)
    if head is not None and head.lower() not in check.hashes.values():
        check.found(f"no manifest has the hash {head}: the chain was rewritten or cut off", manifests.MANIFESTS)
    total = sum(manifest.count for manifest in check.manifests.values())
    log = LiveLog(against_log) if against_log is not None else None
    if log is not None:
        await log.open(next(iter(check.manifests.values()), None))
    for manifest in check.manifests.values():
        await check.records(manifest, log)
        on_progress(check.count, total)
    number = max(check.hashes, default=0)
    if public_key is None and head is None and against_log is None:
        check.notes.append(
            "nothing outside the archive vouches for the newest manifest: check its signature (--public-key), "
            "its hash (--head) or the log (--against-log)"
        )
    newest = check.hashes.get(number)
    return VerifyResult(len(check.manifests), check.count, number, newest, check.signed, check.findings, check.notes)


class _Check:
    """Checks one archive, and collects its defects."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.findings: list[ArchiveDefect] = []
        self.notes: list[str] = []
        self.manifests: dict[int, Manifest] = {}
        self.hashes: dict[int, str] = {}
        self.count = 0
        self.signed: int | None = None

    def found(self, what: str, file: str, topic: str | None = None, record: PartitionOffset | None = None) -> None:
        """Add a defect; ``record`` is the partition and offset of a record."""
        self.findings.append(ArchiveDefect(what, file, topic, *(record or (None, None))))

    async def chain(self) -> None:
        """Check that every manifest from 1 to the newest exists and is readable, and that they form a chain.

        Raises NoArchiveError if there are no manifests.
        """
        paths = {manifests.number_in(path): path for path in await self._store.paths(manifests.MANIFESTS)}
        for number, path in paths.items():
            if number is None or path != manifests.manifest_path(number):
                self.found("a file was added among the manifests", path)
        numbers = [number for number in paths if number is not None]
        if not numbers:
            raise NoArchiveError(f"there is no archive in {self._store.location}")
        previous_hashes: dict[int, str | None] = {}
        for number in range(1, max(numbers) + 1):
            path = manifests.manifest_path(number)
            if number not in paths:
                self.found("the manifest is missing", path)
                continue
            stored = await self._store.get(path)
            self.hashes[number] = manifests.hash_of(stored)
            try:
                manifest = manifests.from_bytes(stored)
            except manifests.ManifestFormatError as error:
                self.found(f"the manifest was changed: it cannot be read ({error})", path)
                continue
            self.manifests[number] = manifest
            previous_hashes[number] = manifest.previous
            if manifest.number != number:
                self.found(f"the manifest was changed: its number is {manifest.number}", path)
        self._links(previous_hashes)
        self._gaps()

    def _links(self, previous_hashes: Mapping[int, str | None]) -> None:
        """Check that each manifest contains the hash of the one before it, and that all belong to one archive."""
        if previous_hashes.get(1) is not None:
            self.found("the first manifest names a previous one", manifests.manifest_path(1))
        for number, previous in previous_hashes.items():
            before = self.hashes.get(number - 1)
            if number > 1 and before is not None and before != previous:
                self.found(
                    f"the manifest was changed: manifest {number} records another hash for it",
                    manifests.manifest_path(number - 1),
                )
        archives = Counter(manifest.archive for manifest in self.manifests.values())
        for number, manifest in self.manifests.items():
            if manifest.archive != archives.most_common(1)[0][0]:
                self.found("the manifest is of another archive", manifests.manifest_path(number))

    def _gaps(self) -> None:
        """Check that the manifests cover the offsets of each partition without a gap."""
        ends: dict[tuple[str, int], int] = {}
        for number, manifest in sorted(self.manifests.items()):
            for covered in manifest.partitions:
                partition = (manifest.topic, covered.partition)
                expected = ends.get(partition, covered.first)
                if covered.first != expected:
                    what = f"the file begins at offset {covered.first}, but the one before it ends at {expected}"
                    self.found(what, manifests.manifest_path(number), manifest.topic, (covered.partition, expected))
                ends[partition] = covered.end

    async def files(self) -> None:
        """Find files that no manifest lists."""
        named = {path for manifest in self.manifests.values() for path in (manifest.file, manifest.digests)}
        newest = max(self.hashes)
        for folder in (manifests.RECORDS, manifests.DIGESTS):
            for path in await self._store.paths(folder):
                number = manifests.number_in(path)
                if path in named:
                    continue
                if number is not None and number > newest:
                    self.notes.append(f"an interrupted run left {path}, which is not part of the archive")
                elif number is None or number in self.manifests:
                    self.found("a file was added", path)

    async def signatures(self, key: Ed25519PublicKey | None) -> None:
        """Check the signatures.

        If a key is given, it must confirm every signature, and the newest manifest must have a signature.
        """
        for path in await self._store.paths(manifests.SIGNATURES):
            number = manifests.number_in(path)
            if number is None or number not in self.hashes:
                self.found("the signature belongs to no manifest", path)
                continue
            self.signed = max(self.signed or 0, number)
            if key is None:
                continue
            try:
                signature = msgspec.json.decode(await self._store.get(path), type=signatures.Signature)
            except (msgspec.DecodeError, UnicodeDecodeError):
                self.found("the signature cannot be read", path)
                continue
            archive = self.manifests[number].archive if number in self.manifests else ""
            problem = signatures.problem(signature, key, archive, number, self.hashes[number])
            if problem:
                self.found(f"the signature is wrong: {problem}", path)
        if key is not None and self.signed != max(self.hashes):
            self.found("the newest manifest is not signed", manifests.signature_path(max(self.hashes)))
        if key is None and self.signed is not None:
            self.notes.append("the archive has signatures, which were not checked; to check them: --public-key FILE")

    async def records(self, manifest: Manifest, log: LiveLog | None) -> None:
        """Compare a file with its manifest and, if ``log`` is given, with the log; find the records that differ."""
        import pyarrow as pa

        from everyrun.replay.archive import parquet

        digests = await self._digests(manifest)
        with tempfile.TemporaryFile(prefix="everyrun-verify-") as file:
            try:
                sha256 = await self._store.fetch(manifest.file, file)
            except FileNotFoundError:
                ranges = ", ".join(
                    f"{manifest.topic}/{c.partition}@{c.first}..{c.end - 1}" for c in manifest.partitions
                )
                self.found(f"the file is missing, with {manifest.count} records: {ranges}", manifest.file)
                return
            read: list[RecordDigest] = []
            content = Content(manifest.topic)
            try:
                for batch in parquet.read_records(manifest.topic, file):
                    found = [digest(record) for record in batch]
                    content.add(found)
                    read += [((r.partition, r.offset), d[:SHORT]) for r, d in zip(batch, found, strict=True)]
            except (pa.ArrowException, OSError, KeyError, ValueError) as error:
                self.found(f"the file was changed: it cannot be read ({error})", manifest.file)
                return
        self.count += len(read)
        before = len(self.findings)
        if sha256 != manifest.sha256 or content.hexdigest() != manifest.content or len(read) != manifest.count:
            if digests is not None:
                self._differences(manifest, digests, read, ("was changed", "was removed", "was added"))
                self._order(manifest, digests, read)
            if len(self.findings) == before:
                self.found("the file was changed", manifest.file)
        if log is not None:
            await self._against_log(manifest, read, log)

    async def _against_log(self, manifest: Manifest, read: Sequence[RecordDigest], log: LiveLog) -> None:
        for what in log.past_end(manifest):
            self.found(what, manifest.file, manifest.topic)
        in_log = await log.digests(manifest)
        if in_log is None:
            self.notes.append(f"{manifest.file} was not compared: the log no longer has all of its records")
            return
        # Kafka may have dropped records of a compacted topic: compare only those that it still has.
        kept = {record for record, _ in in_log}
        archived = read if not log.compacted(manifest.topic) else [one for one in read if one[0] in kept]
        words = ("differs from the log", "is only in the log", "is not in the log")
        self._differences(manifest, in_log, archived, words)

    async def _digests(self, manifest: Manifest) -> list[RecordDigest] | None:
        from everyrun.replay.archive import parquet

        with tempfile.TemporaryFile(prefix="everyrun-verify-") as file:
            try:
                if await self._store.fetch(manifest.digests, file) != manifest.digests_sha256:
                    self.found("the file of digests was changed", manifest.digests)
                    return None
            except FileNotFoundError:
                self.found("the file of digests is missing", manifest.digests)
                return None
            return parquet.read_digests(file)

    def _differences(
        self,
        manifest: Manifest,
        expected: Sequence[RecordDigest],
        found: Sequence[RecordDigest],
        words: tuple[str, str, str],
    ) -> None:
        """Add a defect for each record that differs, is missing or is extra: ``words`` are the three texts for this."""
        changed, removed, added = (f"the record {what}" for what in words)
        wanted, there = dict(expected), dict(found)
        times = Counter(record for record, _ in found)
        problems = [(record, changed) for record in wanted if record in there and there[record] != wanted[record]]
        problems += [(record, removed) for record in wanted if record not in there]
        problems += [(record, added) for record in there if record not in wanted]
        problems += [(record, f"the record occurs {n} times") for record, n in times.items() if n > 1]
        for record, what in sorted(problems)[:LISTED]:
            self.found(what, manifest.file, manifest.topic, record)
        if len(problems) > LISTED:
            self.found(f"and {len(problems) - LISTED} more", manifest.file)

    def _order(self, manifest: Manifest, expected: Sequence[RecordDigest], found: Sequence[RecordDigest]) -> None:
        right, actual = [record for record, _ in expected], [record for record, _ in found]
        if sorted(right) != sorted(actual):
            return
        moved = [there for here, there in zip(right, actual, strict=True) if here != there]
        for record in moved[:LISTED]:
            self.found("the record was reordered", manifest.file, manifest.topic, record)
