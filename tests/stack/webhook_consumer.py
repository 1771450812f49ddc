"""A webhook consumer as people write it for Extend alone: Extend's SDK, a secret, and nothing of Everyrun.

Usage: python webhook_consumer.py PORT SECRET. It prints one line per event: eventId, eventType, run id, metadata keys.
"""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from extend_ai.wrapper.errors import WebhookParseError, WebhookSignatureVerificationError
from extend_ai.wrapper.webhooks import Webhooks

PORT, SECRET = int(sys.argv[1]), sys.argv[2]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        status = 200
        try:
            event = Webhooks().verify_and_parse(body, dict(self.headers), SECRET)
            run = event.payload
            # One write, because several threads write.
            sys.stdout.write(f"{event.event_id} {event.event_type} {run.id} {sorted(run.metadata)}\n")
            sys.stdout.flush()
        except (WebhookSignatureVerificationError, WebhookParseError) as error:
            print("refused:", error, file=sys.stderr, flush=True)
            status = 401
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
