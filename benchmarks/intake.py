"""Measure intake against a bare COPY of the same rows, and its memory with 1,000,000 inputs."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator

import httpx
import psutil

from benchmarks.servers import TOKEN, Servers, row

_ROWS, _MANY = 200_000, 1_000_000


def _line(n: int) -> bytes:
    given = {
        "id": f"invoice-{n:07d}",
        "file": {
            "url": f"https://files.example.com/invoices/{n:07d}.pdf?signature=0123456789abcdef",
            "name": f"{n}.pdf",
        },
        "metadata": {"customer": f"c-{n % 97}", "row": n},
    }
    return json.dumps(given).encode() + b"\n"


async def _parts(count: int) -> AsyncIterator[bytes]:
    # Prepared beforehand, so that the client's own work is not measured.
    for part in list(_blocks(count)):
        yield part


def _blocks(count: int) -> Iterator[bytes]:
    for start in range(0, count, 2000):
        yield b"".join(_line(n) for n in range(start, min(start + 2000, count)))


async def _submit(url: str, count: int) -> float:
    blocks = list(_blocks(count))

    async def body() -> AsyncIterator[bytes]:
        for block in blocks:
            yield block

    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/x-ndjson"}
    async with httpx.AsyncClient(timeout=600) as http:
        began = time.monotonic()
        answer = await http.post(f"{url}/v1/submissions?workflow_id=w", content=body(), headers=headers)
        seconds = time.monotonic() - began
    assert answer.status_code == 202, answer.text
    return seconds


async def run(servers: Servers) -> list[tuple[str, ...]]:
    url = await servers.start("submission", EVERYRUN_DISPATCH_WORKERS="1")
    connection = await servers.connect()
    bare, intake = [], []
    for _ in range(3):
        intake.append(_ROWS / await _submit(url, _ROWS))
        await connection.execute("create table bare (like everyrun_queue.inputs including all)")
        rows = [json.loads(line) for block in _blocks(_ROWS) for line in block.splitlines()]
        records = [
            ("sub_bare", n, r["id"], json.dumps(r["file"]), json.dumps(r["metadata"])) for n, r in enumerate(rows, 1)
        ]
        began = time.monotonic()
        await connection.copy_records_to_table("bare", records=records)
        bare.append(_ROWS / (time.monotonic() - began))
        await connection.execute("drop table bare")
    process = psutil.Process(servers.children["submission"].pid)
    await _submit(url, _MANY)
    resident = process.memory_info().rss / (1 << 20)
    await connection.close()
    return [
        row("submitting NDJSON", sorted(intake)[1], sorted(bare)[1], "rows/s", "0.5 of a bare COPY"),
        ("resident, 1,000,000 inputs", f"{resident:.0f} MB", "", "", "under 200 MB"),
    ]
