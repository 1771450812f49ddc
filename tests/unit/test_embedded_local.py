"""Local parts are reached directly, without the environment's proxies, and get ports even if the kernel has none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from everyrun.cli.client import Client, Target
from everyrun.cli.manifest import Local
from everyrun.cli.upload import Account, Journal, upload_all
from everyrun.embedded import ready, state


class Answers(BaseHTTPRequestHandler):
    """200 with an id, whatever is asked."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-length", "11")
        self.end_headers()
        self.wfile.write(b'{"id": "x"}')

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server here; the environment's proxy answers nothing."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_no_proxy_is_asked_for_what_runs_here(server: str, tmp_path: Path) -> None:
    with pytest.raises(httpx.ConnectError):
        httpx.get(server)
    assert asyncio.run(ready.http(server)()) is None
    target = Target(
        submission_url=server,
        query_url=server.replace("127.0.0.1", "localhost"),
        api_token="token",
        extend_base_url=server,
        extend_api_key="sk_1",
        extend_workspace_id="",
        workflow_id="",
    )
    with Client(target) as client:
        assert client.get(target.submission_url) == {"id": "x"}
        assert client.progress("sub_1") == {"id": "x"}
    file = tmp_path / "a.pdf"
    file.write_bytes(b"a")
    journal = Journal(tmp_path / "uploads.sqlite")
    given = [Local(file, "a.pdf", None)]
    assert asyncio.run(upload_all(given, Account(server, "sk_1", ""), journal, lambda _: None)) == ["x"]


@pytest.mark.parametrize("given", ["1024\t65535\n", "1100\t65535\n"])
def test_where_the_kernel_has_all_ports_one_of_its_own_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str
) -> None:
    ports = tmp_path / "ip_local_port_range"
    ports.write_text(given)
    monkeypatch.setattr(state, "_EPHEMERAL", ports)
    found: list[int] = []
    for _ in range(100):
        found.append(state.free_port(found))
    assert len(set(found)) == 100
    assert min(found) >= 1024
    assert not any(map(state.is_busy, found))
