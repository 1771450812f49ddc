"""Signed links lead only to the checked address, and to a private one only if the setting allows it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from pathlib import Path

import httpx
import pytest
import trustme

from everyrun.addresses import resolve
from everyrun.reconciler.links import LinkError, Links, may_be_private
from everyrun.settings import SettingsError, load
from tests.conftest import free_port
from tests.unit.test_addresses import PRIVATE


@pytest.mark.parametrize(
    ("written", "may"),
    [
        ("https://files.example", False),
        ("https://files.example/", False),
        ("https://minio.internal:9000", True),
        ("https://files.example:443", True),
        ("http://127.0.0.1:9000", True),
        ("https://10.0.0.1", True),
        ("https://[::1]", True),
        ("https://[::1]:9000", True),
    ],
)
def test_origin_may_be_private_if_it_is_written_with_port_or_address(written: str, may: bool) -> None:
    assert may_be_private(written) is may
    assert load(signed_url_origins=written).signed_url_origins == [written]


@pytest.mark.parametrize(
    "written",
    ["files.example", "http://files.example", "ftp://files.example", "https://", "https://u@h", "https://h/path", "*"],
)
def test_setting_that_is_not_an_origin_is_refused_at_start(written: str) -> None:
    with pytest.raises(SettingsError, match="EVERYRUN_SIGNED_URL_ORIGINS"):
        load(signed_url_origins=written)


class Fetches:
    """Links with a resolver that says what the test says, and the requests that came out."""

    def __init__(self, origins: list[str], *answers: list[str]) -> None:
        self.requests: list[httpx.Request] = []
        self._answers = list(answers)
        transport = httpx.MockTransport(self._answer)
        self.links = Links(origins, max_bytes=99, timeout=5.0, transport=transport, resolver=self._resolve, tries=2)

    async def _resolve(self, _host: str, _port: int) -> list[str]:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return httpx.Response(503 if len(self._answers) > 1 else 200, content=b"ok")


async def test_connects_to_the_checked_address_under_the_name_of_the_host() -> None:
    fetches = Fetches(["https://files.example"], ["8.8.8.8"])
    assert await fetches.links.fetch("https://files.example/a/b?signature=x%2Fy") == b"ok"
    (request,) = fetches.requests
    assert str(request.url) == "https://8.8.8.8/a/b?signature=x%2Fy"
    assert request.headers["host"] == "files.example"
    assert request.extensions["sni_hostname"] == "files.example"


@pytest.mark.parametrize("address", PRIVATE[:-3])
async def test_public_origin_with_a_private_address_is_refused(address: str) -> None:
    for answer in ([address], ["8.8.8.8", address]):
        fetches = Fetches(["https://files.example"], answer)
        with pytest.raises(LinkError, match=r"not public.*https://files\.example:443"):
            await fetches.links.fetch("https://files.example/a")
        assert fetches.requests == []


async def test_name_that_changes_its_address_between_two_tries_is_refused() -> None:
    fetches = Fetches(["https://files.example"], ["8.8.8.8"], ["8.8.8.8"], ["127.0.0.1"])
    fetches._answers = [["8.8.8.8"], ["127.0.0.1"], ["127.0.0.1"]]
    with pytest.raises(LinkError, match="not public"):
        await fetches.links.fetch("https://files.example/a")
    assert [request.url.host for request in fetches.requests] == ["8.8.8.8"]


@pytest.mark.parametrize("origin", ["https://minio.internal:9000", "http://127.0.0.1:9000", "https://[::1]:9000"])
async def test_private_origin_is_fetched_if_written_with_port_or_address(origin: str) -> None:
    fetches = Fetches([origin], ["127.0.0.1"])
    assert await fetches.links.fetch(origin + "/a") == b"ok"
    assert fetches.requests[0].headers["host"] == origin.partition("//")[2]


async def test_link_with_another_port_or_form_is_another_origin() -> None:
    fetches = Fetches(["http://127.0.0.1:9000"], ["127.0.0.1"])
    for url in ("http://127.0.0.1:9001/", "http://127.1:9000/", "http://2130706433:9000/", "http://localhost:9000/"):
        with pytest.raises(LinkError, match="SIGNED_URL_ORIGINS"):
            await fetches.links.fetch(url)


async def test_name_without_an_address_raises_link_error() -> None:
    async def nowhere(_host: str, _port: int) -> list[str]:
        raise socket.gaierror("no such host")

    links = Links(["https://files.example"], max_bytes=9, timeout=5.0, resolver=nowhere, tries=1)
    with pytest.raises(LinkError, match="gaierror"):
        await links.fetch("https://files.example/a")


async def test_tls_certificate_is_checked_for_the_name_not_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("files.example").configure_cert(context)
    hosts = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            hosts.append([line for line in head.split(b"\r\n") if line.lower().startswith(b"host:")])
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    async def here(_host: str, _port: int) -> list[str]:
        return await resolve("127.0.0.1", _port)

    port = free_port()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    origins = [f"https://files.example:{port}", f"https://other.example:{port}"]
    async with await asyncio.start_server(serve, "127.0.0.1", port, ssl=context):
        links = Links(origins, max_bytes=9, timeout=10.0, resolver=here, tries=1)
        assert await links.fetch(origins[0] + "/a") == b"ok"
        with pytest.raises(LinkError, match="ConnectError"):
            await links.fetch(origins[1] + "/a")
        await links.aclose()
    assert hosts == [[f"host: files.example:{port}".encode()]]
