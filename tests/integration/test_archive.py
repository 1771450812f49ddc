"""Archives survive kills and concurrent runs, and verification finds every kind of tampering."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from everyrun.log import topics
from everyrun.log.producer import Producer
from everyrun.log.reading import bounds, read_ranges
from everyrun.replay.archive import day_files, signing
from everyrun.replay.archive import manifest as manifests
from everyrun.replay.archive import writer as archives
from everyrun.replay.archive.manifest import digest
from everyrun.replay.archive.reader import ArchiveReader
from everyrun.replay.archive.verify import VerifyResult, verify
from everyrun.replay.archive.writer import archive
from everyrun.replay.errors import ArchiveError
from everyrun.settings import Settings
from tests.records import a_world

TOPICS = archives.archived_topics()


async def write_world(settings: Settings, seed: int, times: int = 1) -> None:
    async with Producer(settings) as producer:
        for n in range(times):
            await producer.append(a_world(random.Random(seed * 1000 + n), chunks=4, inputs=8))


async def log_digests(settings: Settings) -> dict[tuple[str, int], list[bytes]]:
    limits = await bounds(settings, TOPICS)
    ranges = {place: (limits.first[place], end) for place, end in limits.end.items()}
    found: dict[tuple[str, int], list[bytes]] = {}
    async for stretch in read_ranges(settings, ranges):
        found.setdefault((stretch.topic, stretch.partition), []).extend(map(digest, stretch.records))
    return {place: digests for place, digests in found.items() if digests}


async def archive_digests(place: str) -> dict[tuple[str, int], list[bytes]]:
    reader = await ArchiveReader.open(place)
    found: dict[tuple[str, int], list[bytes]] = {}
    async for stretch in reader.read(reader.bounds(TOPICS)):
        found.setdefault((stretch.topic, stretch.partition), []).extend(map(digest, stretch.records))
    return {place: digests for place, digests in found.items() if digests}


@pytest.fixture(scope="module")
async def settings(kafka: str) -> Settings:
    """The log of all tests in this module; each test makes its own archive."""
    settings = Settings(kafka_bootstrap=kafka, topic_prefix=f"t{uuid.uuid4().hex[:8]}.")
    await topics.create(settings)
    return settings


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URL of a bucket on a local S3 server. The environment has the credentials."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{url}/archives", method="PUT"))
    given = {
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**given, "AWS_ENDPOINT_URL": url}.items():
            patch.setenv(name, value)
        yield "s3://archives"
    server.stop()


@pytest.mark.parametrize("kind", ["folder", "s3"])
async def test_a_second_run_adds_only_new_records_and_the_archive_equals_the_log(
    settings: Settings, tmp_path: Path, s3: str, kind: str
) -> None:
    place = str(tmp_path / "archive") if kind == "folder" else f"{s3}/{settings.topic_prefix}archive"
    await write_world(settings, 1)
    first = await archive(settings, place)
    assert (await archive(settings, place)).files == 0
    await write_world(settings, 2)
    seen: list[tuple[int, int]] = []
    second = await archive(settings, place, on_progress=lambda done, total: seen.append((done, total)))
    assert second.number == first.number + second.files
    assert seen[-1] == (second.records, second.records)
    assert await archive_digests(place) == await log_digests(settings)
    found = await verify(place, against_log=settings, head=first.hash)
    assert (found.findings, found.records) == ([], first.records + second.records)


async def test_other_tools_can_read_the_parquet_files(settings: Settings, tmp_path: Path) -> None:
    await write_world(settings, 3)
    await archive(settings, str(tmp_path), topics=["runs"])
    table = pq.read_table(tmp_path / "records")
    assert {"key", "headers", "value", "partition", "offset", "timestamp", "topic", "day"} <= set(table.column_names)
    rows = table.to_pylist()
    assert {row["topic"] for row in rows} == {"runs"}
    assert {str(row["day"]) for row in rows} == {row["timestamp"].strftime("%Y-%m-%d") for row in rows}
    headers = {pair["name"]: pair["value"] for pair in rows[0]["headers"]}
    assert headers["ce_type"] == b"run-observed"


async def test_the_next_run_continues_after_a_kill(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "archive"
    await write_world(settings, 4, times=3)
    killer = (
        "import asyncio, os, signal, sys\n"
        "from everyrun.replay.archive import day_files, object_store, writer\n"
        "from everyrun.settings import load\n"
        "day_files.FILE_RECORDS = 30; day_files.GROUP_RECORDS = 10\n"
        "left = int(sys.argv[2])\n"
        "put = object_store.ObjectStore.put\n"
        "async def counted(self, path, content):\n"
        "    global left\n"
        "    await put(self, path, content)\n"
        "    left -= 1\n"
        "    if left == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "object_store.ObjectStore.put = counted\n"
        "asyncio.run(writer.archive(load(), sys.argv[1]))\n"
    )
    env = {
        **os.environ,
        "EVERYRUN_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "EVERYRUN_TOPIC_PREFIX": settings.topic_prefix,
    }
    for writes in (1, 4):
        done = subprocess.run(
            [sys.executable, "-c", killer, str(place), str(writes)], env=env, timeout=120, check=False
        )
        assert done.returncode == -signal.SIGKILL
    found = await verify(str(place), against_log=settings)
    assert found.findings == []
    assert any("an interrupted run left" in note for note in found.notes)
    monkeypatch.setattr(day_files, "FILE_RECORDS", 30)
    await archive(settings, str(place))
    found = await verify(str(place), against_log=settings)
    assert (found.findings, found.notes) == ([], [])
    assert await archive_digests(str(place)) == await log_digests(settings)


async def test_one_of_two_concurrent_runs_fails_and_the_archive_stays_correct(
    settings: Settings, tmp_path: Path
) -> None:
    await write_world(settings, 5)
    other = archives.ChainWriter.add

    async def add(self: archives.ChainWriter, built: day_files.DayFile) -> None:
        if self.number == 0 and not (tmp_path / "manifests").exists():
            archives.ChainWriter.add = other  # type: ignore[method-assign]
            # The files of the two runs then differ.
            await write_world(settings, 6)
            await archive(settings, str(tmp_path))
        await other(self, built)

    archives.ChainWriter.add = add  # type: ignore[method-assign]
    try:
        with pytest.raises(ArchiveError, match="another run is writing"):
            await archive(settings, str(tmp_path))
    finally:
        archives.ChainWriter.add = other  # type: ignore[method-assign]
    await archive(settings, str(tmp_path))
    found = await verify(str(tmp_path), against_log=settings)
    assert (found.findings, found.notes) == ([], [])


async def test_a_run_deletes_files_that_killed_runs_left(settings: Settings, tmp_path: Path) -> None:
    await write_world(settings, 5)
    await archive(settings, str(tmp_path))
    count = len(list((tmp_path / "manifests").iterdir()))
    # One run stored the file and was killed. Another took the number, and was killed before it deleted the file.
    left = tmp_path / manifests.digest_path(count, "0" * 64)
    left.write_bytes(b"?")
    assert (await verify(str(tmp_path))).findings
    await archive(settings, str(tmp_path))
    assert not left.exists()
    assert (await verify(str(tmp_path), against_log=settings)).findings == []


async def test_archive_refuses_another_log(settings: Settings, tmp_path: Path) -> None:
    await write_world(settings, 6)
    await archive(settings, str(tmp_path))
    empty = settings.model_copy(update={"topic_prefix": settings.topic_prefix + "other."})
    await topics.create(empty)
    with pytest.raises(ArchiveError, match="another log"):
        await archive(empty, str(tmp_path))


# --- verification finds tampering


class Archive:
    """An archive that a test may tamper with."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings

    def manifest(self, number: int) -> manifests.Manifest:
        return manifests.from_bytes((self.folder / manifests.manifest_path(number)).read_bytes())

    def largest(self) -> manifests.Manifest:
        count = len(list((self.folder / "manifests").iterdir()))
        return max((self.manifest(n) for n in range(1, count)), key=lambda m: m.count)

    def records(self, manifest: manifests.Manifest) -> pa.Table:
        return pq.ParquetFile(self.folder / manifest.file).read()

    def write(self, manifest: manifests.Manifest, table: pa.Table) -> None:
        pq.write_table(table, self.folder / manifest.file, compression="zstd")

    async def verify(self, **more: object) -> VerifyResult:
        return await verify(str(self.folder), **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "key"
    signing.make_keys(path)
    return path


@pytest.fixture(scope="module")
async def made(settings: Settings, tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for seed in (7, 8):
        await write_world(settings, seed)
        await archive(settings, str(folder), sign_key=signing.private_key(keys))
    return folder


@pytest.fixture
def signed(settings: Settings, made: Path, tmp_path: Path) -> Archive:
    """A copy of an archive of two signed runs."""
    shutil.copytree(made, tmp_path / "archive")
    return Archive(tmp_path / "archive", settings)


def changed(archived: Archive) -> tuple[str, int, int, str]:
    manifest = archived.largest()
    table = archived.records(manifest)
    rows = table.to_pylist()
    row = rows[5]
    row["value"] = row["value"].replace(b"e", b"3", 1)
    archived.write(manifest, pa.Table.from_pylist(rows, schema=table.schema))
    return manifest.topic, row["partition"], row["offset"], "was changed"


def a_header_changed(archived: Archive) -> tuple[str, int, int, str]:
    manifest = archived.largest()
    table = archived.records(manifest)
    rows = table.to_pylist()
    rows[2]["headers"][0]["value"] += b"!"
    archived.write(manifest, pa.Table.from_pylist(rows, schema=table.schema))
    return manifest.topic, rows[2]["partition"], rows[2]["offset"], "was changed"


def removed(archived: Archive) -> tuple[str, int, int, str]:
    manifest = archived.largest()
    table = archived.records(manifest)
    row = table.slice(3, 1).to_pylist()[0]
    archived.write(manifest, pa.concat_tables([table.slice(0, 3), table.slice(4)]))
    return manifest.topic, row["partition"], row["offset"], "was removed"


def added(archived: Archive) -> tuple[str, int, int, str]:
    manifest = archived.largest()
    table = archived.records(manifest)
    row = {**table.slice(0, 1).to_pylist()[0], "offset": 10_000}
    archived.write(manifest, pa.concat_tables([table, pa.Table.from_pylist([row], schema=table.schema)]))
    return manifest.topic, row["partition"], 10_000, "was added"


def doubled(archived: Archive) -> tuple[str, int, int, str]:
    manifest = archived.largest()
    table = archived.records(manifest)
    row = table.slice(4, 1).to_pylist()[0]
    archived.write(manifest, pa.concat_tables([table, table.slice(4, 1)]))
    return manifest.topic, row["partition"], row["offset"], "occurs 2 times"


def reordered(archived: Archive) -> tuple[str, int, int, str]:
    manifest = archived.largest()
    table = archived.records(manifest)
    rows = table.slice(6, 2).to_pylist()
    parts = [table.slice(0, 6), table.slice(7, 1), table.slice(6, 1), table.slice(8)]
    archived.write(manifest, pa.concat_tables(parts))
    return manifest.topic, rows[0]["partition"], rows[0]["offset"], "was reordered"


@pytest.mark.parametrize("tamper", [changed, a_header_changed, removed, added, doubled, reordered])
async def test_verify_finds_a_tampered_record(
    signed: Archive, tamper: Callable[[Archive], tuple[str, int, int, str]]
) -> None:
    topic, partition, offset, what = tamper(signed)
    found = (await signed.verify()).findings
    named = [(f.topic, f.partition, f.offset) for f in found if what in f.what]
    assert (topic, partition, offset) in named, found
    assert {f.file for f in found} == {signed.largest().file}
    with pytest.raises(ArchiveError):
        await archive_digests(str(signed.folder))


def a_file_removed(archived: Archive) -> str:
    file = archived.largest().file
    (archived.folder / file).unlink()
    return file


def a_file_added(archived: Archive) -> str:
    file = archived.largest().file
    extra = file.replace(".parquet", "-again.parquet")
    shutil.copy(archived.folder / file, archived.folder / extra)
    return extra


def a_file_without_number_added(archived: Archive) -> str:
    (archived.folder / "records" / "extra.parquet").write_bytes(b"x")
    return "records/extra.parquet"


def bytes_changed(archived: Archive) -> str:
    file = archived.largest().file
    whole = bytearray((archived.folder / file).read_bytes())
    whole[len(whole) // 2] ^= 1
    (archived.folder / file).write_bytes(whole)
    return file


def digests_changed(archived: Archive) -> str:
    file = archived.largest().digests
    (archived.folder / file).write_bytes(b"x")
    return file


def a_manifest_changed(archived: Archive) -> str:
    manifest = archived.largest()
    path = manifests.manifest_path(manifest.number)
    (archived.folder / path).write_bytes(manifests.to_bytes(msgspec.structs.replace(manifest, day="2020-01-01")))
    return path


def a_manifest_removed(archived: Archive) -> str:
    path = manifests.manifest_path(2)
    (archived.folder / path).unlink()
    return path


def a_manifest_unreadable(archived: Archive) -> str:
    path = manifests.manifest_path(2)
    (archived.folder / path).write_bytes(b"{}")
    return path


def the_newest_manifests_cut_off(archived: Archive) -> str:
    newest = max(int(path.stem) for path in (archived.folder / "manifests").iterdir())
    for path in (archived.folder / "manifests", archived.folder / "signatures"):
        (path / f"{newest:010d}.json").unlink()
    return manifests.signature_path(newest - 1)


def a_signature_changed(archived: Archive) -> str:
    path = sorted((archived.folder / "signatures").iterdir())[0]
    signature = msgspec.json.decode(path.read_bytes())
    signature["signature"] = signature["signature"].swapcase()
    path.write_bytes(msgspec.json.encode(signature))
    return f"signatures/{path.name}"


def the_newest_signature_removed(archived: Archive) -> str:
    path = sorted((archived.folder / "signatures").iterdir())[-1]
    path.unlink()
    return f"signatures/{path.name}"


@pytest.mark.parametrize(
    "tamper",
    [
        *(
            a_file_removed,
            a_file_added,
            a_file_without_number_added,
            bytes_changed,
            digests_changed,
            a_manifest_changed,
        ),
        *(a_manifest_removed, a_manifest_unreadable, the_newest_manifests_cut_off, a_signature_changed),
        the_newest_signature_removed,
    ],
)
async def test_verify_finds_a_tampered_file(signed: Archive, tamper: Callable[[Archive], str], keys: Path) -> None:
    key = signing.public_key(keys.with_name("key.pub"))
    file = tamper(signed)
    assert file in {f.file for f in (await signed.verify(public_key=key)).findings}


async def test_key_noted_hash_and_log_each_detect_a_recomputed_chain(
    signed: Archive, keys: Path, tmp_path: Path
) -> None:
    noted = (await signed.verify()).hash
    changed(signed)
    manifest = signed.largest()
    # Recompute every hash, from the changed file to the newest manifest.
    forged = tmp_path / "forged"
    shutil.copytree(signed.folder, forged)
    count = len(list((forged / "manifests").iterdir()))
    previous: str | None = None
    for number in range(1, count + 1):
        own = signed.manifest(number)
        if number == manifest.number:
            own = _rehashed(forged, own)
        own = msgspec.structs.replace(own, previous=previous)
        stored = manifests.to_bytes(own)
        (forged / manifests.manifest_path(number)).write_bytes(stored)
        previous = manifests.hash_of(stored)
    assert (await verify(str(forged))).findings == []
    assert (await verify(str(forged))).notes
    assert (await verify(str(forged), public_key=signing.public_key(keys.with_name("key.pub")))).findings
    assert (await verify(str(forged), head=noted)).findings
    found = (await verify(str(forged), against_log=signed.settings)).findings
    assert [f.what for f in found] == ["the record differs from the log"]


@pytest.mark.parametrize("partition", [0, 999])
async def test_a_manifest_past_the_end_of_the_log_does_not_hide_a_forged_file(signed: Archive, partition: int) -> None:
    changed(signed)
    count = len(list((signed.folder / "manifests").iterdir()))
    forged = signed.largest().number
    previous: str | None = None
    for number in range(1, count + 1):
        own = signed.manifest(number)
        if number == forged:
            own = _rehashed(signed.folder, own)
            beyond = manifests.Covered(999, 0, 1, 0) if partition == 999 else own.partitions[0]
            longer = msgspec.structs.replace(beyond, end=beyond.end + 10**6)
            others = own.partitions if partition == 999 else own.partitions[1:]
            own = msgspec.structs.replace(own, partitions=sorted([*others, longer], key=lambda c: c.partition))
        own = msgspec.structs.replace(own, previous=previous)
        stored = manifests.to_bytes(own)
        (signed.folder / manifests.manifest_path(number)).write_bytes(stored)
        previous = manifests.hash_of(stored)
    defects = [f.what for f in (await verify(str(signed.folder), against_log=signed.settings)).findings]
    assert "the record differs from the log" in defects
    assert any("but the log ends at" in what for what in defects)


def _rehashed(folder: Path, manifest: manifests.Manifest) -> manifests.Manifest:
    import hashlib

    from everyrun.replay.archive import parquet

    content = manifests.Content(manifest.topic)
    records = []
    with (folder / manifest.file).open("rb") as file:
        for batch in parquet.read_records(manifest.topic, file):
            records += batch
    digests = [digest(record) for record in records]
    content.add(digests)
    pq.write_table(parquet.digests_table(records, digests), folder / manifest.digests)
    hashes = [hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in (manifest.file, manifest.digests)]
    return msgspec.structs.replace(manifest, sha256=hashes[0], digests_sha256=hashes[1], content=content.hexdigest())


async def test_verify_finds_nothing_in_an_intact_archive(signed: Archive, keys: Path) -> None:
    key = signing.public_key(keys.with_name("key.pub"))
    found = await signed.verify(public_key=key, against_log=signed.settings)
    assert (found.findings, found.notes, found.signed) == ([], [], found.number)


async def test_verify_detects_another_key(signed: Archive, tmp_path: Path) -> None:
    signing.make_keys(tmp_path / "other")
    found = (await signed.verify(public_key=signing.public_key(tmp_path / "other.pub"))).findings
    assert {f.what for f in found} == {"the signature is wrong: it was made with another key"}
