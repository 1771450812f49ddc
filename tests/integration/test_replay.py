"""Replays deliver selected events once, with a mark, to a topic, an HTTP address or a file."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from standardwebhooks import Webhook

from everyrun.log import topics
from everyrun.log.cloudevents import Record
from everyrun.log.producer import Producer
from everyrun.log.reading import Partition, bounds, read_ranges
from everyrun.projection.offsets import INPUTS
from everyrun.replay.archive.reader import ArchiveReader
from everyrun.replay.archive.writer import archive
from everyrun.replay.errors import TargetError
from everyrun.replay.export import publish
from everyrun.replay.export.selection import EventSelection, scope_of, selected_ranges
from everyrun.replay.export.targets import ToUrl, structured
from everyrun.settings import Settings
from tests.integration.conftest import read_topic
from tests.records import a_world
from tests.stack.up import everyrun

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture(scope="module")
async def settings(kafka: str) -> Settings:
    """The log of some submissions, which all tests in this module read."""
    settings = Settings(kafka_bootstrap=kafka, topic_prefix=f"t{uuid.uuid4().hex[:8]}.")
    await topics.create(settings)
    async with Producer(settings) as producer:
        for seed in range(6):
            await producer.append([_of(seed, r) for r in a_world(random.Random(seed), chunks=4, inputs=5)])
    return settings


def _of(seed: int, record: Record) -> Record:
    """Return the record with ids that no other world has."""

    def own(text: bytes) -> bytes:
        return re.sub(rb"(batch|sub)_(?=\d)", rb"\1_%d_" % seed, text)

    headers = [(name, own(value)) for name, value in record.headers]
    return record._replace(key=own(record.key), value=own(record.value), headers=headers)


def environment(settings: Settings, tmp_path: Path) -> dict[str, str]:
    return {
        "EVERYRUN_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "EVERYRUN_TOPIC_PREFIX": settings.topic_prefix,
        "EVERYRUN_DATA_DIR": str(tmp_path / "data"),
        "EVERYRUN_REPLAY_SECRET": SECRET,
    }


async def run(settings: Settings, tmp_path: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(everyrun, "replay", *words, **environment(settings, tmp_path))


@pytest.fixture
async def target(settings: Settings) -> AsyncIterator[str]:
    name = f"audit-{uuid.uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(name, 2, 1)])
    yield name
    await admin.delete_topics([name])
    await admin.close()


async def in_log(settings: Settings, *names: str) -> dict[str, Any]:
    """Return every record of the log by its position, topic/partition/offset."""
    limits = await bounds(settings, names or INPUTS)
    found = {}
    async for stretch in read_ranges(settings, {p: (0, end) for p, end in limits.end.items()}):
        for record in stretch.records:
            found[f"{stretch.topic}/{record.partition}/{record.offset}"] = record
    return found


async def consume(settings: Settings, topic: str, count: int) -> list[Any]:
    """Read a topic from its beginning with a plain consumer."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=settings.kafka_bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with asyncio.timeout(60):
            return [await consumer.getone() for _ in range(count)]
    finally:
        await consumer.stop()


async def test_a_plain_consumer_can_tell_replayed_from_live_events(
    settings: Settings, target: str, tmp_path: Path
) -> None:
    log = await in_log(settings, "runs")
    part = max({r.partition for r in log.values()}, key=lambda p: sum(r.partition == p for r in log.values()))
    done = await run(settings, tmp_path, "--to", target, "--from-offsets", f"runs:{part}=2..9")
    assert done.returncode == 0, done.stderr
    async with Producer(settings.model_copy(update={"topic_prefix": ""})) as producer:
        live = a_world(random.Random(99))[0]
        await producer.append([live._replace(topic=target)])
    found = await consume(settings, target, 8)
    marks = {dict(r.headers).get("ce_everyrunreplay"): r for r in found}
    assert set(marks) == {None, *(f"runs/{part}/{offset}".encode() for offset in range(2, 9))}
    for mark, record in marks.items():
        if mark is not None:
            original = log[mark.decode()]
            assert (record.key, record.value) == (original.key, original.value)
            assert set(record.headers) - set(original.headers) == {("ce_everyrunreplay", mark)}


async def test_own_and_missing_topics_are_refused(settings: Settings, tmp_path: Path) -> None:
    before = (await bounds(settings, ["runs"])).end
    refused = await run(settings, tmp_path, "--to", f"{settings.topic_prefix}runs")
    assert (refused.returncode, "--force" in refused.stderr) == (1, True)
    missing = await run(settings, tmp_path, "--to", "no-such-topic")
    assert (missing.returncode, "there is no topic no-such-topic" in " ".join(missing.stderr.split())) == (1, True)
    assert (await bounds(settings, ["runs"])).end == before


async def test_topics_of_another_installation_are_refused_unless_forced(settings: Settings, tmp_path: Path) -> None:
    other = settings.model_copy(update={"topic_prefix": f"other{uuid.uuid4().hex[:8]}."})
    await topics.create(other)
    for name in ("runs", "quarantine", "results"):
        refused = await run(settings, tmp_path, "--to", other.topic(name))
        assert refused.returncode == 1, name
        assert f"is a topic of the Everyrun installation whose topics begin with '{other.topic_prefix}'" in plain(
            refused
        ), name
        assert "--force" in refused.stderr
    assert set((await bounds(other, ["runs", "quarantine", "results"])).end.values()) == {0}
    forced = await run(settings, tmp_path, "--to", other.topic("runs"), "--type", "submission-accepted", "--force")
    assert forced.returncode == 0, forced.stderr


async def test_a_topic_with_live_events_is_refused_whatever_its_name(
    settings: Settings, target: str, tmp_path: Path
) -> None:
    flags = ("--to", target, "--type", "submission-accepted")
    assert (await run(settings, tmp_path, *flags)).returncode == 0
    again = await run(settings, tmp_path, *flags, "--anew")
    assert again.returncode == 0, "a topic with only replays accepts more of them"
    plain_settings = settings.model_copy(update={"topic_prefix": ""})
    live = next(record for record in a_world(random.Random(98)) if record.topic == "runs")
    async with Producer(plain_settings) as producer:
        await producer.append([live._replace(topic=target, key=b"of another program", headers=[])])
        assert (await run(settings, tmp_path, *flags, "--anew")).returncode == 0, (
            "records of other programs do not matter"
        )
        await producer.append([live._replace(topic=target)])
    refused = await run(settings, tmp_path, *flags, "--anew")
    assert refused.returncode == 1
    assert f"{target} has live events of an Everyrun installation (run-observed at" in plain(refused)
    assert "Replay to a topic that is empty or has only replays" in plain(refused)


def plain(done: subprocess.CompletedProcess[str]) -> str:
    """Return standard error in one line."""
    return " ".join(done.stderr.split())


async def test_a_dry_run_counts_and_writes_nothing(settings: Settings, tmp_path: Path) -> None:
    done = await run(settings, tmp_path, "--to", tmp_path / "out.ndjson", "--type", "run-observed", "--dry-run")
    assert done.returncode == 0, done.stderr
    count = sum(key.startswith("runs/") for key in await in_log(settings))
    assert f"{count:,} events would be published" in done.stderr
    assert not (tmp_path / "out.ndjson").exists()


async def selected_positions(settings: Settings, **more: Any) -> set[str]:
    selection = EventSelection(**more)
    source = publish.LogSource(settings)
    limits = await bounds(settings, {*selection.topics, "batches"})
    has = {place: (0, end) for place, end in limits.end.items()}
    ranges = await publish.skip_other_times(settings, selection, selected_ranges(selection, has))
    scope = await scope_of(selection, source, has)
    target = RecordingTarget()
    await publish.publish(source, ranges, selection, scope, target, publish.CheckpointFile(None))
    return set(target.positions)


class RecordingTarget:
    at_once = 7

    def __init__(self) -> None:
        self.positions: list[str] = []

    async def deliver(self, topic: str, records: Any) -> None:
        self.positions += [f"{topic}/{record.partition}/{record.offset}" for record in records]

    def size(self) -> int:
        return 0

    def finish(self) -> None:
        pass


async def test_a_batch_selects_every_event_about_it(settings: Settings) -> None:
    log = await in_log(settings)
    values = {place: json.loads(record.value) for place, record in log.items()}
    submitted = next(v for v in values.values() if v["type"] == "batch-submitted")
    batch, home = submitted["batch_id"], (submitted["chunk"], submitted["attempt"])
    homes = {(v["chunk"], v["attempt"]) for v in values.values() if v.get("batch_id") == batch}
    assert home in homes
    wanted = {
        place
        for place, value in values.items()
        if (value["type"] == "run-observed" and value["run"]["batchId"] == batch)
        or (value.get("chunk"), value.get("attempt")) in homes
    }
    assert {values[place]["type"] for place in wanted} >= {"batch-requested", "batch-submitted", "run-observed"}
    assert await selected_positions(settings, batch=batch) == wanted


async def test_a_submission_a_type_and_a_time_select_events(settings: Settings) -> None:
    log = await in_log(settings)
    values = {place: json.loads(record.value) for place, record in log.items()}
    submission = next(v["submission_id"] for v in values.values() if v["type"] == "batch-submitted")
    batches = {v["batch_id"] for v in values.values() if v.get("batch_id") and v.get("submission_id") == submission}
    wanted = {
        place
        for place, value in values.items()
        if value.get("submission_id") == submission
        or (value["type"] == "run-observed" and value["run"]["batchId"] in batches)
    }
    assert await selected_positions(settings, submission=submission) == wanted
    requested = {place for place, value in values.items() if value["type"] == "batch-requested"}
    assert await selected_positions(settings, types=("batch-requested",)) == requested
    times = sorted(record.timestamp for record in log.values())
    first, end = times[len(times) // 4], times[len(times) * 3 // 4]
    between = {place for place, r in log.items() if first <= r.timestamp < end}
    since, until = (datetime.fromtimestamp(moment / 1000, UTC) for moment in (first, end))
    assert await selected_positions(settings, since=since, until=until) == between
    assert await selected_positions(settings, since=datetime.now(UTC) + timedelta(days=1)) == set()


async def test_a_killed_replay_resumes_and_writes_each_event_once(settings: Settings, tmp_path: Path) -> None:
    out = tmp_path / "out.ndjson"
    killer = (
        "import os, signal, sys\n"
        "from everyrun.replay.export import targets\n"
        "targets.ToFile.at_once = 11\n"
        "left = 4\n"
        "deliver = targets.ToFile.deliver\n"
        "async def counted(self, topic, records):\n"
        "    global left\n"
        "    await deliver(self, topic, records)\n"
        "    left -= 1\n"
        "    if left == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "targets.ToFile.deliver = counted\n"
        "from everyrun.cli.app import main\n"
        "main()\n"
    )
    env = {**os.environ, **environment(settings, tmp_path)}
    for _ in range(2):
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", killer, "replay", "--to", str(out)], env=env, capture_output=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not out.exists(), "the file has its name only when it is complete"
        assert out.with_name("out.ndjson.part").stat().st_size > 0
    ended = await run(settings, tmp_path, "--to", out)
    assert ended.returncode == 0, ended.stderr
    assert "Resuming" in ended.stderr
    assert not out.with_name("out.ndjson.part").exists()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    log = await in_log(settings)
    assert Counter(line["everyrunreplay"] for line in lines) == Counter(log.keys())
    last: dict[str, int] = {}
    for line in lines:
        part, _, offset = line["everyrunreplay"].rpartition("/")
        assert int(offset) > last.get(part, -1)
        last[part] = int(offset)
        record = log[line["everyrunreplay"]]
        assert (line["data"], line["id"]) == (json.loads(record.value), dict(record.headers)["ce_id"].decode())
    again = await run(settings, tmp_path, "--to", out)
    assert (again.returncode, "exists: delete it" in again.stderr) == (1, True)


async def test_a_replay_from_an_archive_equals_one_from_the_log(settings: Settings, tmp_path: Path) -> None:
    await archive(settings, str(tmp_path / "archive"))
    flags = ("--type", "run-observed")
    for name, more in (("log", ()), ("archive", ("--from-archive", tmp_path / "archive"))):
        done = await run(settings, tmp_path, "--to", tmp_path / f"{name}.ndjson", *flags, *more)
        assert done.returncode == 0, done.stderr
    log, archived = (sorted((tmp_path / f"{name}.ndjson").read_text().splitlines()) for name in ("log", "archive"))
    assert log == archived
    assert log


class Receiver:
    """A receiver of webhooks that refuses the first few."""

    def __init__(self, answers: list[int]) -> None:
        self.answers = answers
        self.taken: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = receiver.answers.pop(0) if receiver.answers else 204
                if status < 300:
                    receiver.taken.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver([503, 429])
    yield receiver
    receiver.server.shutdown()


async def test_posts_are_signed_as_standard_webhooks(settings: Settings, tmp_path: Path, receiver: Receiver) -> None:
    done = await run(settings, tmp_path, "--to", receiver.url, "--type", "submission-accepted", "--rate", "500")
    assert done.returncode == 0, done.stderr
    log = await in_log(settings, "batches")
    wanted = [place for place, r in log.items() if json.loads(r.value)["type"] == "submission-accepted"]
    judge = Webhook(SECRET)
    events = [judge.verify(body, headers) for headers, body in receiver.taken]
    assert Counter(event["everyrunreplay"] for event in events) == Counter(wanted)
    ids = [headers["webhook-id"] for headers, _ in receiver.taken]
    assert len(set(ids)) == len(ids)
    assert not any("." in identifier for identifier in ids)


async def test_a_refused_event_ends_the_replay_and_the_error_has_its_position(
    settings: Settings, receiver: Receiver
) -> None:
    receiver.answers = [410]
    record = next(iter((await in_log(settings)).values()))
    async with httpx.AsyncClient() as http:
        with pytest.raises(TargetError, match="410"):
            await ToUrl(http, receiver.url, SECRET).deliver("runs", [record])
        await ToUrl(http, receiver.url, SECRET).deliver("runs", [record])
    assert receiver.taken[0][1] == structured("runs", record)


async def test_the_archive_reader_returns_the_given_ranges(settings: Settings, tmp_path: Path) -> None:
    await archive(settings, str(tmp_path / "archive"))
    reader = await ArchiveReader.open(str(tmp_path / "archive"))
    has: dict[Partition, tuple[int, int]] = reader.bounds(["runs"])
    wanted = {place: (first + 1, end - 1) for place, (first, end) in has.items() if end > 2}
    found: dict[Partition, list[int]] = {}
    ends: dict[Partition, int] = {}
    async for stretch in reader.read(wanted):
        found.setdefault((stretch.topic, stretch.partition), []).extend(r.offset for r in stretch.records)
        ends[stretch.topic, stretch.partition] = stretch.next_offset
    assert found == {place: list(range(first, end)) for place, (first, end) in wanted.items()}
    assert ends == {place: end for place, (_, end) in wanted.items()}
    assert await read_topic(settings, "quarantine") == []
