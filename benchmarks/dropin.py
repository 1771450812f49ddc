"""Measure lists and gets of known runs at the drop-in endpoint, against bare look-ups of the same runs in Postgres.

EVERYRUN_BENCH_RUNS is the number of runs in the tables (default 1,000,000).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Callable

import asyncpg
import psutil

from benchmarks.servers import TOKEN, Servers

_RUNS = int(os.environ.get("EVERYRUN_BENCH_RUNS", "1000000"))
_SECONDS, _CONNECTIONS = 10.0, 8
_STEP = {
    "object": "workflow_step_run",
    "status": "PROCESSED",
    "result": {"extractRun": {"output": {"value": {"n": 1}}}},
}
_RUN = {
    "object": "workflow_run",
    "status": "PROCESSED",
    "workflow": {"object": "workflow", "id": "w", "name": "Invoices"},
    "workflowVersion": {"object": "workflow_version", "id": "v", "version": "2"},
    "dashboardUrl": "https://dashboard.extend.example/runs/1",
    "files": [{"object": "file", "id": "file_1", "name": "1.pdf", "type": "PDF"}],
    "metadata": {"row": 1, "customer": "c-1"},
    "initialRunAt": "2026-01-01T00:00:00.000Z",
    "usage": {"credits": 2},
    "stepRuns": [_STEP] * 8,
}

_FILL = """
insert into everyrun_queue.submissions
    (submission_id, workflow_id, expected, batches, idempotency_key, content_hash, created_at, announced_at)
select 'sub_' || lpad(b::text, 26, '0'), 'w', 1000, 1, 'dropin/' || b, '\\x00', now(), now()
from generate_series(1, $1::int) b;
"""
_CHUNKS = """
insert into everyrun_queue.chunks (chunk, submission_id, first_position, last_position, state, attempt, batch_id)
select 'sub_' || lpad(b::text, 26, '0') || '.c00001', 'sub_' || lpad(b::text, 26, '0'), 1, 1000, 'submitted', 1,
       'batch_' || b
from generate_series(1, $1::int) b
"""
_BATCHES = """
insert into everyrun.batches
    (chunk, attempt, batch_id, submission_id, workflow_id, expected, state, submitted_at, counts, input_ids)
select 'sub_' || lpad(b::text, 26, '0') || '.c00001', 1, 'batch_' || b, 'sub_' || lpad(b::text, 26, '0'), 'w', 1000,
       'SETTLED', now(), '{"PROCESSED": 1000}',
       array(select 'sub_' || lpad(b::text, 26, '0') || ':' || n from generate_series(1, 1000) n)
from generate_series(1, $1::int) b
"""
_RESULTS = """
insert into everyrun.results
    (input_id, external_id, submission_id, batch_id, position, chunk, attempt, file, metadata, run_id, status, run,
     source, observed_at, settled_at, version)
select s || ':' || n, n::text, s, 'batch_' || b, n, s || '.c00001', 1, '{}', '{}', 'workflow_run_' || b || '_' || n,
       'PROCESSED', $3::jsonb || jsonb_build_object('id', 'workflow_run_' || b || '_' || n, 'batchId', 'batch_' || b),
       'webhook', now() - n * interval '1 second', now(), '1'
from generate_series($1::int, $2::int) b, lateral (select 'sub_' || lpad(b::text, 26, '0') as s) l,
     generate_series(1, 1000) n
"""


async def _fill(connection: asyncpg.Connection, batches: int) -> None:
    for statement in (_FILL, _CHUNKS, _BATCHES):
        await connection.execute(statement, batches)
    for first in range(1, batches + 1, 50):
        await connection.execute(_RESULTS, first, min(first + 49, batches), json.dumps(_RUN))
    await connection.execute("vacuum analyze everyrun.results")
    await connection.execute("vacuum analyze everyrun_queue.chunks")
    await connection.execute("analyze everyrun.batches")
    await connection.execute("analyze everyrun_queue.submissions")


async def _ask(port: int, path: Callable[[], str], ends: float, times: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"host: x\r\nauthorization: Bearer {TOKEN}\r\nx-extend-api-version: 2026-02-09\r\n\r\n"
    while time.monotonic() < ends:
        began = time.monotonic()
        writer.write(f"GET {path()} HTTP/1.1\r\n{head}".encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        await reader.readexactly(int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        times.append(time.monotonic() - began)
    writer.close()


async def _bare(dsn: str, run_id: Callable[[], str], ends: float) -> int:
    connection, count = await asyncpg.connect(dsn), 0
    while time.monotonic() < ends:
        await connection.fetchrow("select run::text from everyrun.results where run_id = $1", run_id())
        count += 1
    await connection.close()
    return count


async def run(servers: Servers) -> list[tuple[str, ...]]:
    port, batches = servers.port(), max(_RUNS // 1000, 1)
    connection = await servers.connect()
    await _fill(connection, batches)
    await servers.start("submission", EVERYRUN_DROPIN_LISTEN=f"127.0.0.1:{port}")
    process = psutil.Process(servers.children["submission"].pid)
    choose = random.Random(1)

    def run_id() -> str:
        return f"workflow_run_{choose.randint(1, batches)}_{choose.randint(1, 1000)}"

    kinds: dict[str, Callable[[], str]] = {
        "gets of a run": lambda: f"/workflow_runs/{run_id()}",
        "lists of a batch, 10 runs a page": lambda: f"/workflow_runs?batchId=batch_{choose.randint(1, batches)}",
    }
    ends = time.monotonic() + _SECONDS
    ceiling = sum(await asyncio.gather(*(_bare(servers.dsn, run_id, ends) for _ in range(_CONNECTIONS)))) / _SECONDS
    rows = []
    for name, path in kinds.items():
        times: list[float] = []
        used = sum(process.cpu_times()[:2])
        ends = time.monotonic() + _SECONDS
        await asyncio.gather(*(_ask(port, path, ends, times) for _ in range(_CONNECTIONS)))
        used = sum(process.cpu_times()[:2]) - used
        rate, p99 = len(times) / _SECONDS, sorted(times)[int(len(times) * 0.99)] * 1000
        figure = f"{rate:,.0f}/s, p99 {p99:.0f} ms, {used / len(times) * 1000:.2f} s of CPU time for 1,000"
        target = "500/s, p99 under 50 ms"
        rows.append((f"{name}, {_RUNS:,} runs", figure, f"{ceiling:,.0f}/s", f"{rate / ceiling:.2f}", target))
    await connection.close()
    return rows
