"""Measure the export of a submission over HTTP, next to a bare COPY of the same rows; and the service's memory."""

from __future__ import annotations

import asyncio
import os
import time

import asyncpg
import httpx
import psutil

from benchmarks import world
from benchmarks.servers import TOKEN, Servers, row
from everyrun.query.export_formats import COLUMNS

#: Number of results. The target is for a million; ROWS=1000000 takes some minutes.
_ROWS = int(os.environ.get("ROWS", "1000000"))
_BATCH = 1000
_TIMES = 2


async def _fill(connection: asyncpg.Connection) -> None:
    """Write rows as the processor leaves them, with runs of about 0.6 KB."""
    await connection.execute(
        "insert into everyrun.submissions values ($1, 'workflow_1', null, 90, $2, now())", world.SUBMISSION, _ROWS
    )
    await connection.execute(
        "insert into everyrun.batches (chunk, attempt, batch_id, submission_id, workflow_id, expected, state,"
        " submitted_at, input_ids)"
        " select $1::text || '.c' || lpad(b::text, 6, '0'), 1, 'batch_' || b, $1, 'workflow_1', $3, 'SETTLED',"
        " now(), '{}'"
        " from generate_series(0, $2::int / $3::int - 1) b",
        *(world.SUBMISSION, _ROWS, _BATCH),
    )
    await connection.execute(
        "insert into everyrun.results (input_id, external_id, submission_id, batch_id, position, chunk, attempt, file,"
        " metadata, run_id, status, run, credits, source, observed_at, settled_at, version)"
        " select $1::text || ':invoice-' || lpad(k::text, 7, '0'), 'invoice-' || lpad(k::text, 7, '0'), $1,"
        " 'batch_' || k / $3::int, k + 1, $1 || '.c' || lpad((k / $3::int)::text, 6, '0'), 1,"
        " jsonb_build_object('url', 'https://files.example.com/invoices/' || k || '.pdf', 'name', k || '.pdf'),"
        " jsonb_build_object('customer', 'c-' || k % 97, 'row', k), 'workflow_run_' || md5(k::text), 'PROCESSED',"
        " jsonb_build_object('id', md5(k::text), 'stepRuns', '[]'::jsonb, 'rest', repeat(md5(k::text), 14)), 2.0,"
        " 'webhook', now() + k * interval '1 ms', now() + k * interval '1 ms', '2:' || md5(k::text)"
        " from generate_series(0, $2::int - 1) k",
        *(world.SUBMISSION, _ROWS, _BATCH),
    )
    for table in ("submissions", "batches", "results"):
        await connection.execute(f"vacuum analyze everyrun.{table}")


async def _copy(connection: asyncpg.Connection) -> float:
    """Return the rows per second of a bare COPY of the same rows and columns."""

    async def drop(_data: bytes) -> None:
        return

    began = time.monotonic()
    of_submission = "input_id >= $1::text || ':' and input_id < $1 || ';'"
    await connection.copy_from_query(
        f"select {', '.join(COLUMNS)} from everyrun.flat_results where {of_submission}",
        world.SUBMISSION,
        output=drop,
    )
    return _ROWS / (time.monotonic() - began)


async def _export(http: httpx.AsyncClient, format_: str) -> tuple[float, int]:
    """Return the rows per second of an export, and its size in bytes."""
    began, size = time.monotonic(), 0
    params = {"format": format_}
    async with http.stream("GET", f"/v1/submissions/{world.SUBMISSION}/export", params=params) as answer:
        assert answer.status_code == 200
        async for part in answer.aiter_raw():
            size += len(part)
    return _ROWS / (time.monotonic() - began), size


async def run(servers: Servers) -> list[tuple[str, ...]]:
    """Return the rows of the table."""
    connection = await servers.connect()
    await _fill(connection)
    url = await servers.start("query")
    query = psutil.Process(servers.children["query"].pid)
    peak = 0

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, query.memory_info().rss)
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    found = []
    async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=600) as http:
        # In turn, so that what else the machine does meets both.
        copies, exports = [await _copy(connection)], []
        for _ in range(_TIMES):
            exports.append(await _export(http, "parquet"))
            copies.append(await _copy(connection))
        bare, (rate, size) = max(copies), max(exports)
        name = f"export of {_ROWS:,} results to Parquet ({size / 1e6:.0f} MB), over HTTP"
        found.append(row(name, rate, bare, "rows/s", "0.5 of a bare COPY"))
        memory = f"{peak / 1e6:.0f} MB"
        found.append(("export to Parquet: peak resident memory of the service", memory, "", "", "under 200 MB"))
        for format_ in ("csv", "ndjson"):
            rate, size = await _export(http, format_)
            found.append(row(f"export to {format_} ({size / 1e6:.0f} MB)", rate, bare, "rows/s", "-"))
    watching.cancel()
    await connection.close()
    return found
