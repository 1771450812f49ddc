"""Serve the ceiling of the bridge: a handler that only checks the HMAC and produces.

``python -m benchmarks.bare PORT``.
"""

from __future__ import annotations

import sys

import uvloop

from benchmarks.servers import SECRET
from everyrun.extend.signature import sign
from everyrun.health import Health
from everyrun.log.cloudevents import Record
from everyrun.log.producer import Producer
from everyrun.serve import http_server, respond, stop_on_signals, with_health
from everyrun.settings import Settings


async def main(port: int) -> None:
    settings = Settings()
    async with Producer(settings) as producer:

        async def app(_scope, receive, send):
            body = b""
            more = True
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
            headers = dict(_scope["headers"])
            assert (
                sign(headers[b"x-extend-request-timestamp"], body, SECRET.encode())
                == headers[b"x-extend-request-signature"]
            )
            await producer.append([Record("runs", body[12:24], body, [])])
            await respond(send, 200, b"{}")

        async with http_server(f"127.0.0.1:{port}", with_health(Health(), app)):
            await stop_on_signals().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
