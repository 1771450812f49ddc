"""Send webhooks on many connections: ``python -m benchmarks.load URL SECONDS CONNECTIONS BODY_BYTES``."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from urllib.parse import urlsplit

from benchmarks.servers import SECRET
from everyrun.extend.signature import sign


def request(url: str, number: int, size: int) -> bytes:
    """Return a signed webhook as the bytes of an HTTP request."""
    parts = urlsplit(url)
    run = {
        "object": "workflow_run",
        "id": f"workflow_run_{number}",
        "status": "PROCESSED",
        "batchId": f"batch_{number % 50}",
    }
    payload = {**run, "metadata": {"row": number}, "stepRuns": [], "padding": "x" * max(size - 250, 0)}
    event = {"eventId": f"event_{number}", "eventType": "workflow_run.completed", "payload": payload}
    body = json.dumps(event, separators=(",", ":")).encode()
    stamp = str(int(time.time()))
    signature = sign(stamp.encode(), body, SECRET.encode()).decode()
    head = (
        f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
        f"x-extend-request-timestamp: {stamp}\r\nx-extend-request-signature: {signature}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def connection(url: str, requests: list[bytes], offset: int, ends: float, times: list[float]) -> None:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    number = offset
    while time.monotonic() < ends:
        began = time.monotonic()
        writer.write(requests[number % len(requests)])
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        times.append(time.monotonic() - began)
        number += 1
    writer.close()


async def main(url: str, seconds: float, connections: int, size: int) -> None:
    requests = [request(url, n, size) for n in range(2000)]
    times: list[float] = []
    ends = time.monotonic() + seconds
    await asyncio.gather(*(connection(url, requests, n * 31, ends, times) for n in range(connections)))
    times.sort()
    print(json.dumps({"rate": len(times) / seconds, "p99": times[int(len(times) * 0.99)]}))


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
