"""Send malformed bytes to the APIs, to the bridge and as HTTP; valid messages among them are not lost."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
import socket
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
from hypothesis import strategies as st

from everyrun.extend.signature import sign
from tests.conftest import eventually
from tests.fuzz.conftest import SECRET, TOKEN, World, fuzz
from tests.integration.conftest import read_topic
from tests.integration.test_bridge import webhook

pytestmark = pytest.mark.stack

#: JSON texts that parsers often get wrong.
_ODD = st.sampled_from(
    [
        b'"\\u0000"',
        b'"a\\u0000b"',
        b'"\\ud800"',
        b'"\\udfff\\ud800"',
        b'"\xff\xfe"',
        b'"\xed\xa0\x80"',
        b'"\xc0\x80"',
        b'"' + b"x" * 100_000 + b'"',
        b"1e999",
        b"-1e999",
        b"1" * 5000,
        b"1." + b"1" * 5000,
        b"1e-99999999",
        b"123456789012345678901234567890",
        b"NaN",
        b"Infinity",
        b"-0",
        b"[" * 500 + b"]" * 500,
        b"[" * 5000 + b"]" * 5000,
        b"[" * 100_000,
        b'{"a":' * 2000 + b"1" + b"}" * 2000,
        b'{"a":1,"a":2}',
        b'{"":null}',
        b'{"__proto__":{}}',
        b"true",
        b"null",
        b"",
    ]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
_VALUE = _ODD | _JSON.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))


def _damage(text: bytes, positions: list[int], junk: bytes) -> bytes:
    for position in positions:
        at = position % (len(text) + 1)
        text = text[:at] + junk + text[at + (position % 3) :]
    return text


def damaged(text: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Return the text unchanged, or with some bytes inserted and removed."""
    return st.builds(_damage, text, st.lists(st.integers(0, 1 << 20), max_size=3), st.binary(max_size=4))


# --- the submission API
_ROW = st.builds(
    lambda a, b, c, d: b'{"id":' + a + b',"file":{"url":' + b + b',"settings":' + c + b'},"metadata":' + d + b"}",
    st.just(b'"doc"') | _VALUE,
    st.just(b'"https://files.example.com/1.pdf"') | _VALUE,
    st.just(b'{"password":"x"}') | _VALUE,
    st.just(b'{"a":1}') | _VALUE | _VALUE.map(lambda value: b'{"a":' + value + b"}"),
)
_UPLOAD = st.one_of(
    st.tuples(st.just("application/x-ndjson"), damaged(st.lists(_ROW, max_size=4).map(b"\n".join))),
    st.tuples(
        st.just("application/json"),
        damaged(st.lists(_ROW, max_size=4).map(lambda rows: b'{"inputs":[' + b",".join(rows) + b"]}")),
    ),
    st.tuples(
        st.just("text/csv"),
        damaged(st.lists(_VALUE, max_size=4).map(lambda cells: b"url,metadata,b\n" + b",".join(cells))),
    ),
    st.tuples(st.text(st.characters(max_codepoint=255, exclude_categories=["Cc"]), max_size=30), st.binary()),
)
_GOOD = b'{"id":"good","file":{"url":"https://files.example.com/good.pdf"},"metadata":{"a":1}}'


def test_no_upload_crashes_submission_and_the_next_is_accepted(world: World, http: httpx.Client) -> None:
    url = world.url("submission") + "/v1/submissions"

    def try_out(upload: tuple[str, bytes]) -> None:
        kind, body = upload
        headers = {"content-type": kind.encode("latin-1").strip() or b"x"}
        answer = http.post(url, params={"workflow_id": "w"}, content=body, headers=headers)
        world.check(answer.status_code, answer.text)
        assert answer.status_code in (202, 413, 415, 422), answer.text

    fuzz(_UPLOAD, try_out, 60)
    large = b'{"id":"large","file":{"text":"' + b"x" * (10 << 20) + b'"}}\n' + _GOOD
    answer = http.post(
        url, params={"workflow_id": "w"}, content=large, headers={"content-type": "application/x-ndjson"}
    )
    assert answer.status_code == 422, answer.text
    answer = http.post(
        url, params={"workflow_id": "w"}, content=_GOOD, headers={"content-type": "application/x-ndjson"}
    )
    assert answer.status_code == 202, answer.text
    world.check_logs()


# --- the bridge
_RUN = st.builds(
    lambda a, b, c, d: b'{"object":"workflow_run","id":' + a + b',"status":' + b + b',"batchId":' + c + b"," + d + b"}",
    st.just(b'"run_f"') | _VALUE,
    st.just(b'"PROCESSED"') | _VALUE,
    st.just(b'"b"') | _VALUE,
    _VALUE.map(lambda value: b'"metadata":' + value)
    | _VALUE.map(lambda value: b'"output":{"value":' + value + b"}")
    | _VALUE.map(lambda value: b'"endTime":' + value),
)
_HOOK = damaged(
    st.builds(
        lambda a, b, c: b'{"eventId":' + a + b',"eventType":' + b + b',"payload":' + c + b"}",
        st.just(b'"event"') | _VALUE,
        st.just(b'"workflow_run.completed"') | _VALUE,
        _RUN | _VALUE | _VALUE.map(lambda value: b'{"object":"signed_data_url","data":' + value + b',"id":"r"}'),
    )
) | st.binary(max_size=200)


def signed(body: bytes) -> dict[str, str | bytes]:
    """Return the headers of Extend's signature."""
    stamp = str(int(time.time())).encode()
    return {"x-extend-request-timestamp": stamp, "x-extend-request-signature": sign(stamp, body, SECRET.encode())}


async def test_no_signed_webhook_is_lost_whatever_it_contains(world: World, http: httpx.Client) -> None:
    """A signed webhook is answered 200 and is in a topic; valid runs among them are in the tables."""
    url = world.url("bridge") + "/webhooks/extend"
    mark, numbers = uuid.uuid4().hex[:8], itertools.count()

    def post(body: bytes) -> httpx.Response:
        return http.post(url, content=body, headers=signed(body))

    def try_out(body: bytes) -> None:
        answer = post(body)
        world.check(answer.status_code, answer.text)
        assert answer.status_code == 200
        assert post(webhook(f"good-{mark}-{next(numbers)}")).status_code == 200
        unsigned = http.post(url, content=body, headers={"x-extend-request-signature": body[:20].hex()})
        assert unsigned.status_code == 401

    await asyncio.to_thread(fuzz, _HOOK, try_out, 60)
    large = json.dumps({"eventId": "large", "payload": "x" * (10 << 20)}).encode()
    assert post(large).status_code == 200
    good = next(numbers)
    connection = await asyncpg.connect(world.dsn)

    async def all_there() -> bool:
        query = "select count(*) from everyrun.unmatched_runs where starts_with(run_id, $1)"
        return bool(await connection.fetchval(query, f"good-{mark}-") == good)

    await eventually(all_there, f"{good} good runs are in the table", 120)
    await connection.close()
    world.check_logs()


async def test_a_run_that_postgres_cannot_store_is_kept(world: World, http: httpx.Client) -> None:
    """A run with a NUL is in the log, and in the quarantine or in a table without the NUL."""
    mark = uuid.uuid4().hex[:8]
    body = webhook(f"nul-{mark}", output={"value": "a\x00b"})
    url = world.url("bridge") + "/webhooks/extend"
    answer = await asyncio.to_thread(http.post, url, content=body, headers=signed(body))
    assert answer.status_code == 200
    assert any(headers["ce_id"] == f"e-nul-{mark}" for _, headers in await read_topic(world.settings, "runs"))
    connection = await asyncpg.connect(world.dsn)

    async def somewhere() -> Any:
        return await connection.fetchval(
            "select (select count(*) from everyrun.unmatched_runs where run_id = $1)"
            " + (select count(*) from everyrun.quarantine q where position($2 in q::text) > 0)",
            f"nul-{mark}",
            f"nul-{mark}",
        )

    await eventually(somewhere, "the run is in a table", 60)
    await connection.close()


# --- HTTP itself
_LINE = st.sampled_from(
    [b"GET / HTTP/1.1", b"POST /v1/submissions?workflow_id=w HTTP/1.1", b"POST /webhooks/extend HTTP/1.1"]
)
_HEADER = st.sampled_from(
    [
        b"host: x",
        b"authorization: Bearer " + TOKEN.encode(),
        b"content-type: application/json",
        b"content-length: 5",
        b"content-length: -5",
        b"content-length: 99999999999999999999",
        b"transfer-encoding: chunked",
        b"transfer-encoding: gzip, chunked",
        b"expect: 100-continue",
        b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: eA==",
        b"connection: upgrade\r\nupgrade: h2c",
        b"connection: close",
        b"x: \x00",
        b": empty",
        b" folded",
        b"x" * 40_000,
    ]
)
_REQUEST = st.builds(
    lambda line, headers, body: b"\r\n".join([line, *headers, b"", b""]) + body,
    damaged(_LINE) | _LINE,
    st.lists(_HEADER, max_size=6),
    st.binary(max_size=30) | st.sampled_from([b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"0\r\n\r\n"]),
)
_TRAFFIC = st.lists(_REQUEST, min_size=1, max_size=3).map(b"".join) | damaged(_REQUEST) | st.binary(max_size=300)


@pytest.mark.parametrize("name", ["submission", "bridge", "query"])
def test_no_bytes_on_a_connection_crash_a_service(world: World, http: httpx.Client, name: str) -> None:
    address = urlsplit(world.url(name))

    def try_out(traffic: bytes) -> None:
        answer = b""
        where = (address.hostname, address.port)
        with socket.create_connection(where, timeout=30) as connection, contextlib.suppress(ConnectionError):
            connection.sendall(traffic)
            try:
                connection.shutdown(socket.SHUT_WR)
            except OSError as error:
                # The service closed a connection that sent too much; its answer may still be readable.
                if error.errno != errno.ENOTCONN:
                    raise
            while part := connection.recv(1 << 16):
                answer += part
        text = answer.decode("latin-1")
        world.check(0, text)
        assert " 500 " not in text.partition("\r\n")[0]

    fuzz(_TRAFFIC, try_out, 25)
    assert http.get(world.url(name) + "/readyz").status_code == 200
    world.check_logs()
