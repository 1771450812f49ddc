"""Receive webhooks: ``python -m benchmarks.sink DEAD_PORT PORT...``. The dead port accepts requests and never answers.

``GET /count`` on any other port returns the number of requests that all of them have answered.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop

answered = 0
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def _live(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    global answered
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if head.startswith(b"get"):
                text = str(answered).encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text))
                continue
            await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
            answered += 1
            writer.write(_ANSWER)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def _dead(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    while await reader.read(65536):
        pass


async def main(dead: int, *ports: int) -> None:
    await asyncio.start_server(_dead, "127.0.0.1", dead)
    for port in ports:
        await asyncio.start_server(_live, "127.0.0.1", port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(*map(int, sys.argv[1:])))
