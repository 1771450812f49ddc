"""The archive commands and their exit codes."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
from pathlib import Path

from everyrun.log.producer import Producer
from everyrun.settings import Settings
from tests.records import a_world
from tests.stack.up import everyrun


async def test_archive_list_and_verify(settings: Settings, tmp_path: Path) -> None:
    async with Producer(settings) as producer:
        await producer.append(a_world(random.Random(1)))
    env = {"EVERYRUN_KAFKA_BOOTSTRAP": settings.kafka_bootstrap, "EVERYRUN_TOPIC_PREFIX": settings.topic_prefix}
    place, key = tmp_path / "archive", tmp_path / "key"

    async def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(everyrun, "archive", *words, **env)

    assert (await run("verify", "--from", place)).returncode == 4
    assert (await run("keygen", key)).returncode == 0
    assert key.stat().st_mode & 0o777 == 0o600
    assert (await run("keygen", key)).returncode == 1
    assert (await run()).returncode == 2
    done = await run("--to", place, "--sign-key", key)
    assert done.returncode == 0, done.stderr
    head = done.stdout.strip()
    again = await run("--to", place)
    assert ("Nothing new" in again.stderr, again.stdout.strip()) == (True, head)
    listed = await run("list", "--from", place, "--json")
    files = [json.loads(line) for line in listed.stdout.splitlines()]
    assert {file["topic"] for file in files} == {"batches", "runs"}
    flags = ("--public-key", tmp_path / "key.pub", "--head", head, "--against-log")
    done = await run("verify", "--from", place, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert head in done.stdout
    (place / files[0]["file"]).unlink()
    done = await run("verify", "--from", place, "--json", *flags)
    assert done.returncode == 1
    assert [f["file"] for f in json.loads(done.stdout)["findings"]] == [files[0]["file"]]
    done = await run("verify", "--from", place, "--public-key", key)
    assert (done.returncode, "not a public key" in done.stderr) == (2, True)
