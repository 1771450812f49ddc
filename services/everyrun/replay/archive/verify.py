"""Whether an archive is what was written, and where it is not: the file, the partition and the offset."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from everyrun.log import topics as log_topics
from everyrun.log.reading import bounds, read_ranges
from everyrun.replay.archive import manifest as manifests
from everyrun.replay.archive import parquet
from everyrun.replay.archive import signing as signatures
from everyrun.replay.archive.manifest import SHORT, Content, Manifest, digest
from everyrun.replay.archive.object_store import Objects
from everyrun.replay.archive.writer import ArchiveError, NoArchiveError
from everyrun.settings import Settings

Place = tuple[int, int]
"""A record's partition and offset."""

#: Of a file with more differences than this so many are named.
NAMED = 100


class Finding(NamedTuple):
    """Something that is not as it was written. ``file`` is a path in the archive."""

    what: str
    file: str
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None

    def __str__(self) -> str:
        place = f"{self.topic}/{self.partition}@{self.offset}: " if self.offset is not None else ""
        return f"{place}{self.what} ({self.file})"


class Verified(NamedTuple):
    """What was looked at, and found. ``notes`` are worth knowing, and no differences."""

    files: int
    records: int
    number: int
    hash: str | None
    signed: int | None
    findings: list[Finding]
    notes: list[str]


async def verify(
    place: str,
    *,
    public_key: Ed25519PublicKey | None = None,
    head: str | None = None,
    against_log: Settings | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verified:
    """Read every manifest, file and record of an archive and compare each with what vouches for it.

    ``public_key`` must have signed the newest manifest; ``head`` is a manifest's hash noted earlier, which must still
    be in the chain; ``against_log`` compares every record with the live log.

    Raises ArchiveError where there is no archive, FileNotFoundError where there is no folder.
    """
    objects = Objects(place)
    check = _Check(objects)
    await check.chain()
    await check.files()
    await check.signatures(public_key)
    if head is not None and head.lower() not in check.hashes.values():
        check.found(f"no manifest has the hash {head}: the chain was made anew or cut", manifests.MANIFESTS)
    total = sum(manifest.count for manifest in check.manifests.values())
    log = _LogSide(against_log) if against_log is not None else None
    if log is not None:
        await log.open(next(iter(check.manifests.values()), None))
    for manifest in check.manifests.values():
        await check.records(manifest, log)
        progress(check.count, total)
    number = max(check.hashes, default=0)
    if public_key is None and head is None and against_log is None:
        check.notes.append(
            "the newest manifest is vouched for by nothing outside the archive: "
            "sign it (--sign-key) or note its hash (--head)"
        )
    newest = check.hashes.get(number)
    return Verified(len(check.manifests), check.count, number, newest, check.signed, check.findings, check.notes)


class _Check:
    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        self.manifests: dict[int, Manifest] = {}
        self.hashes: dict[int, str] = {}
        self.count = 0
        self.signed: int | None = None

    def found(self, what: str, file: str, topic: str | None = None, place: Place | None = None) -> None:
        """Note a difference."""
        self.findings.append(Finding(what, file, topic, *(place or (None, None))))

    async def chain(self) -> None:
        """Every manifest from 1 to the newest: there, readable, followed by one that has its hash, without holes."""
        paths = {manifests.number_in(path): path for path in await self._objects.paths(manifests.MANIFESTS)}
        strange = [path for number, path in paths.items() if number is None or path != manifests.manifest_path(number)]
        for path in strange:
            self.found("a file was added among the manifests", path)
        numbers = [number for number in paths if number is not None]
        if not numbers:
            raise NoArchiveError(f"there is no archive in {self._objects.place}")
        claims: dict[int, str | None] = {}
        for number in range(1, max(numbers) + 1):
            path = manifests.manifest_path(number)
            if number not in paths:
                self.found("the manifest is missing", path)
                continue
            stored = await self._objects.get(path)
            self.hashes[number] = manifests.hash_of(stored)
            try:
                manifest = manifests.from_bytes(stored)
            except manifests.NotAManifestError as error:
                self.found(f"the manifest was changed: it can not be read ({error})", path)
                continue
            self.manifests[number] = manifest
            claims[number] = manifest.previous
            if manifest.number != number:
                self.found(f"the manifest was changed: it says it is number {manifest.number}", path)
        self._links(claims)
        self._holes()

    def _links(self, claims: Mapping[int, str | None]) -> None:
        if claims.get(1) is not None:
            self.found("the first manifest names one before it", manifests.manifest_path(1))
        for number, previous in claims.items():
            before = self.hashes.get(number - 1)
            if number > 1 and before is not None and before != previous:
                self.found(
                    f"the manifest was changed: manifest {number} has another hash of it",
                    manifests.manifest_path(number - 1),
                )
        archives = Counter(manifest.archive for manifest in self.manifests.values())
        for number, manifest in self.manifests.items():
            if manifest.archive != archives.most_common(1)[0][0]:
                self.found("the manifest is of another archive", manifests.manifest_path(number))

    def _holes(self) -> None:
        ends: dict[tuple[str, int], int] = {}
        for number, manifest in sorted(self.manifests.items()):
            for covered in manifest.partitions:
                place = (manifest.topic, covered.partition)
                expected = ends.get(place, covered.first)
                if covered.first != expected:
                    what = f"begins at offset {covered.first} where {expected} was next"
                    self.found(what, manifests.manifest_path(number), manifest.topic, (covered.partition, expected))
                ends[place] = covered.end

    async def files(self) -> None:
        """Every file that is named is there, and no other."""
        named = {path for manifest in self.manifests.values() for path in (manifest.file, manifest.digests)}
        newest = max(self.hashes)
        for folder in (manifests.RECORDS, manifests.DIGESTS):
            for path in await self._objects.paths(folder):
                number = manifests.number_in(path)
                if path in named:
                    continue
                if number is not None and number > newest:
                    self.notes.append(f"{path} is left of a run that was ended, and not part of the archive")
                elif number is None or number in self.manifests:
                    self.found("a file was added", path)

    async def signatures(self, key: Ed25519PublicKey | None) -> None:
        """With a key: every signature is its own, and the newest manifest has one."""
        for path in await self._objects.paths(manifests.SIGNATURES):
            number = manifests.number_in(path)
            if number is None or number not in self.hashes:
                self.found("the signature is of no manifest that is there", path)
                continue
            self.signed = max(self.signed or 0, number)
            if key is None:
                continue
            try:
                signature = msgspec.json.decode(await self._objects.get(path), type=signatures.Signature)
            except (msgspec.DecodeError, UnicodeDecodeError):
                self.found("the signature can not be read", path)
                continue
            archive = self.manifests[number].archive if number in self.manifests else ""
            problem = signatures.problem(signature, key, archive, number, self.hashes[number])
            if problem:
                self.found(f"the signature is wrong: {problem}", path)
        if key is not None and self.signed != max(self.hashes):
            self.found("the newest manifest is not signed", manifests.signature_path(max(self.hashes)))
        if key is None and self.signed is not None:
            self.notes.append("there are signatures; to check them: --public-key FILE")

    async def records(self, manifest: Manifest, log: _LogSide | None) -> None:
        """The file's bytes, its records, their order; where they differ, which."""
        digests = await self._digests(manifest)
        with tempfile.TemporaryFile(prefix="everyrun-verify-") as file:
            try:
                sha256 = await self._objects.fetch(manifest.file, file)
            except FileNotFoundError:
                places = ", ".join(
                    f"{manifest.topic}/{c.partition}@{c.first}..{c.end - 1}" for c in manifest.partitions
                )
                self.found(f"the file is missing, with {manifest.count} records: {places}", manifest.file)
                return
            read: list[tuple[Place, bytes]] = []
            content = Content(manifest.topic)
            try:
                for batch in parquet.read_records(manifest.topic, file):
                    found = [digest(record) for record in batch]
                    content.add(found)
                    read += [((r.partition, r.offset), d[:SHORT]) for r, d in zip(batch, found, strict=True)]
            except (pa.ArrowException, OSError, KeyError, ValueError) as error:
                self.found(f"the file was changed: it can not be read ({error})", manifest.file)
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
            for what in log.beyond(manifest):
                self.found(what, manifest.file, manifest.topic)
            theirs = await log.digests(manifest)
            if theirs is None:
                self.notes.append(f"{manifest.file}: the log no longer has these records, they are not compared")
            else:
                there = {place for place, _ in theirs}
                ours = read if not log.compacted(manifest.topic) else [one for one in read if one[0] in there]
                said = ("differs from the log", "is in the log only", "is not in the log")
                self._differences(manifest, theirs, ours, said)

    async def _digests(self, manifest: Manifest) -> list[tuple[Place, bytes]] | None:
        with tempfile.TemporaryFile(prefix="everyrun-verify-") as file:
            try:
                if await self._objects.fetch(manifest.digests, file) != manifest.digests_sha256:
                    self.found("the file of digests was changed", manifest.digests)
                    return None
            except FileNotFoundError:
                self.found("the file of digests is missing", manifest.digests)
                return None
            return parquet.read_digests(file)

    def _differences(
        self,
        manifest: Manifest,
        right: Sequence[tuple[Place, bytes]],
        found: Sequence[tuple[Place, bytes]],
        said: tuple[str, str, str],
    ) -> None:
        changed, removed, added = (f"the record {what}" for what in said)
        wanted, there = dict(right), dict(found)
        times = Counter(place for place, _ in found)
        problems = [(place, changed) for place in wanted if place in there and there[place] != wanted[place]]
        problems += [(place, removed) for place in wanted if place not in there]
        problems += [(place, added) for place in there if place not in wanted]
        problems += [(place, f"the record is there {n} times") for place, n in times.items() if n > 1]
        for place, what in sorted(problems)[:NAMED]:
            self.found(what, manifest.file, manifest.topic, place)
        if len(problems) > NAMED:
            self.found(f"and {len(problems) - NAMED} more", manifest.file)

    def _order(
        self, manifest: Manifest, right: Sequence[tuple[Place, bytes]], found: Sequence[tuple[Place, bytes]]
    ) -> None:
        ours, theirs = [place for place, _ in right], [place for place, _ in found]
        if sorted(ours) != sorted(theirs):
            return
        moved = [there for here, there in zip(ours, theirs, strict=True) if here != there]
        for place in moved[:NAMED]:
            self.found("the record was reordered", manifest.file, manifest.topic, place)


class _LogSide:
    """The live log, to compare with."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._compacted = {t.name for t in log_topics.declared() if "compact" in t.config.get("cleanup.policy", "")}

    async def open(self, manifest: Manifest | None) -> None:
        """Look where the log begins and ends. Raises ArchiveError where it is another cluster's."""
        cluster = await log_topics.cluster_id(self._settings)
        if manifest is not None and manifest.cluster_id != cluster:
            raise ArchiveError(f"the archive is of Kafka cluster {manifest.cluster_id}, this is {cluster}")
        self._bounds = await bounds(self._settings, [topic.name for topic in log_topics.declared()])

    def compacted(self, topic: str) -> bool:
        """Whether the log may have dropped records of the topic."""
        return topic in self._compacted

    def beyond(self, manifest: Manifest) -> list[str]:
        """Where a manifest says that it has what the log never had, in words: an archive cannot be past its log."""
        found = []
        for covered in manifest.partitions:
            end = self._bounds.end.get((manifest.topic, covered.partition), 0)
            if covered.end > end:
                where = f"{manifest.topic}/{covered.partition}"
                found.append(f"it says to have {where} up to offset {covered.end}, and the log of it ends at {end}")
        return found

    async def digests(self, manifest: Manifest) -> list[tuple[Place, bytes]] | None:
        """The digests of what the log has of a manifest's ranges; None where it does not have all of them any more."""
        ranges = {}
        for covered in manifest.partitions:
            place = (manifest.topic, covered.partition)
            if self._bounds.first.get(place, 0) > covered.first:
                return None
            ranges[place] = (covered.first, min(covered.end, self._bounds.end.get(place, 0)))
        found: list[tuple[Place, Any]] = []
        async for stretch in read_ranges(self._settings, ranges):
            found += [((r.partition, r.offset), digest(r)[:SHORT]) for r in stretch.records]
        return found
