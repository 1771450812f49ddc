"""Measure a retry of 100,000 failed inputs: until the call answers, and until the first call reaches Extend."""

from __future__ import annotations

import asyncio
import time

import asyncpg
import httpx

from benchmarks.servers import TOKEN, Servers, until

_INPUTS, _PER_CHUNK = 100_000, 1000
_SUBMISSION = "sub_" + "0" * 26

_QUEUE = """
insert into everyrun_queue.submissions
    (submission_id, workflow_id, priority, expected, batches, idempotency_key, content_hash, created_at, announced_at)
values ($1::text, 'workflow_1', 90, $2::int, $2::int / $3::int, $1::text, '', now(), now())
"""
_CHUNKS = """
insert into everyrun_queue.chunks (chunk, submission_id, first_position, last_position, state, attempt, batch_id)
select $1::text || '.c' || lpad(n::text, 5, '0'), $1::text, (n - 1) * $3::int + 1, n * $3::int, 'submitted', 1,
       'batch_' || n
from generate_series(1, $2::int / $3::int) n
"""
_FILES = """
insert into everyrun_queue.inputs (submission_id, position, external_id, file, metadata)
select $1::text, n, 'invoice-' || n,
       '{"url":"https://files.example.com/invoices/' || n || '.pdf?signature=0123456789abcdef"}',
       '{"customer":"c-' || n % 97 || '","row":' || n || '}'
from generate_series(1, $2::int) n
"""
_RESULTS = """
insert into everyrun.results (input_id, external_id, submission_id, batch_id, position, chunk, attempt, file, metadata,
    run_id, status, failure_reason, run, credits, source, observed_at, settled_at, version)
select $1::text || ':invoice-' || n, 'invoice-' || n, $1::text, 'batch_' || ((n - 1) / $3::int + 1), n,
       $1::text || '.c' || lpad(((n - 1) / $3::int + 1)::text, 5, '0'), 1, '{}',
       jsonb_build_object('customer', 'c-' || n % 97),
       'run_' || n, 'FAILED', 'INTERNAL_ERROR', '{}', 2.0, 'webhook', now(), now(), '00004'
from generate_series(1, $2::int) n
"""
_BARE = """
insert into bare (submission_id, position, external_id, file, metadata, first_try)
select submission_id, position + $2::int, external_id, file, metadata, position from everyrun_queue.inputs
where submission_id = $1::text and position <= $2::int
"""


class _Extend:
    """Answers every request with 503, and remembers when the first batch came."""

    def __init__(self) -> None:
        self.first_batch: float | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST /workflow_runs/batch") and self.first_batch is None:
            self.first_batch = time.monotonic()
        writer.write(b"HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()


async def run(servers: Servers) -> list[tuple[str, ...]]:
    extend = _Extend()
    port = servers.port()
    async with await asyncio.start_server(extend.serve, "127.0.0.1", port):
        url = await servers.start("submission", EVERYRUN_EXTEND_BASE_URL=f"http://127.0.0.1:{port}")
        connection = await servers.connect()
        bare = await _prepare(connection)
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(timeout=600, headers=headers) as http:
            began = time.monotonic()
            answer = await http.post(f"{url}/v1/submissions/{_SUBMISSION}/retries", json={"reason": "benchmark"})
            answered = time.monotonic() - began
        assert answer.status_code == 202, answer.text
        assert answer.json()["inputs"] == _INPUTS

        async def sent() -> bool:
            return extend.first_batch is not None

        await until(sent, 120)
        assert extend.first_batch is not None
        sending = extend.first_batch - began
        await connection.close()
    return [
        (
            "retry of 100,000: the call",
            f"{answered:.2f} s",
            f"{bare:.2f} s",
            f"{bare / answered:.2f}",
            "answers in 2 s",
        ),
        ("retry of 100,000: until sending begins", f"{sending:.2f} s", "", "", "in 5 s"),
    ]


async def _prepare(connection: asyncpg.Connection) -> float:
    """Make a submission whose inputs have all failed. Return the seconds that a bare copy of its inputs takes."""
    for statement, more in ((_QUEUE, True), (_CHUNKS, True), (_FILES, False), (_RESULTS, True)):
        await connection.execute(statement, _SUBMISSION, _INPUTS, *((_PER_CHUNK,) if more else ()))
    await connection.execute("analyze everyrun.results; analyze everyrun_queue.inputs; analyze everyrun_queue.chunks")
    await connection.execute("create table bare (like everyrun_queue.inputs including all)")
    began = time.monotonic()
    await connection.execute(_BARE, _SUBMISSION, _INPUTS)
    return time.monotonic() - began
