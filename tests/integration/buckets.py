"""A local S3 server (moto) for tests, with the environment that the client library reads."""

from __future__ import annotations

import urllib.request
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import obstore
import pytest
from moto.server import ThreadedMotoServer
from obstore.store import from_url


class LocalS3:
    """An S3 server in this process with one bucket, ``invoices``."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        #: The settings of the client library.
        self.variables = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ENDPOINT_URL": self.url,
        }
        for name, value in self.variables.items():
            patch.setenv(name, value)
        # The server's state belongs to the process, so it may hold what an earlier test wrote.
        self._request("POST", "/moto-api/reset", b"")
        self._request("PUT", "/invoices", None)

    def _request(self, method: str, path: str, content: bytes | None) -> None:
        headers = {"content-type": "application/pdf"}
        request = urllib.request.Request(self.url + path, method=method, data=content, headers=headers)
        urllib.request.urlopen(request).close()

    def put(self, key: str, content: bytes = b"%PDF-1.7") -> None:
        """Write an object."""
        if key.endswith("/") or "//" in key:
            # The client library cannot name such a key.
            self._request("PUT", f"/invoices/{quote(key)}", content)
        else:
            obstore.put(from_url("s3://invoices"), key, content)

    def put_all(self, keys: list[str], content: bytes = b"%PDF-1.7") -> None:
        """Write objects; each contains its key."""
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda key: self.put(key, content + key.encode()), keys))

    def delete(self, key: str) -> None:
        """Delete an object."""
        obstore.delete(from_url("s3://invoices"), [key])

    def stop(self) -> None:
        """Stop the server."""
        self._server.stop()
