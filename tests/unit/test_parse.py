"""An upload as it streams in: the same rows wherever the body is cut."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everyrun.submission.parse import CSV, JSON, NDJSON, Unreadable, UploadError, rows

ROWS = [
    {"id": "a", "file": {"url": "https://x.example/1.pdf"}, "metadata": {"n": 1, "t": "q\u00e9\n"}},
    {"id": "b", "file": {"text": 'two\nlines, and a " mark'}, "metadata": {}},
    {"file": {"id": "file_1"}, "metadata": {"deep": {"er": [1, None, True, 1.5]}}},
]
AS_JSON = json.dumps({"inputs": ROWS}).encode()
AS_NDJSON = b"\n".join(json.dumps(row).encode() for row in ROWS) + b"\n\n"
AS_CSV = (
    "\ufeffid,url,text,file_id,metadata,customer\r\n"
    'a,https://x.example/1.pdf,,,"{""n"":1}",c-1\r\n'
    'b,,"two\nlines, and a "" mark",,,\r\n'
    ",,,file_1,,c-3\r\n"
).encode()
FROM_CSV = [
    {"id": "a", "file": {"url": "https://x.example/1.pdf"}, "metadata": {"n": 1, "customer": "c-1"}},
    {"id": "b", "file": {"text": 'two\nlines, and a " mark'}, "metadata": {}},
    {"file": {"id": "file_1"}, "metadata": {"customer": "c-3"}},
]


async def read(kind: str, body: bytes, cuts: list[int] | None = None) -> list[Any]:
    places = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts or [])})

    async def parts() -> AsyncIterator[bytes]:
        for start, end in itertools.pairwise(places):
            yield body[start:end]

    found = [given async for piece in rows(kind, parts()) for given in piece]
    return [given if isinstance(given, Unreadable) else msgspec.to_builtins(given) for given in found]


cuts = st.lists(st.integers(0, 10_000), max_size=12)


@pytest.mark.parametrize(
    ("kind", "body", "wanted"), [(JSON, AS_JSON, ROWS), (NDJSON, AS_NDJSON, ROWS), (CSV, AS_CSV, FROM_CSV)]
)
@given(cuts=cuts)
async def test_the_same_rows_wherever_the_body_is_cut(
    kind: str, body: bytes, wanted: list[Any], cuts: list[int]
) -> None:
    assert await read(kind, body, cuts) == wanted


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        (JSON, b"[]", "must be an object"),
        (JSON, b'{"rows": []}', "unknown field 'rows'"),
        (JSON, b'{"inputs": {}}', "inputs must be a list"),
        (JSON, b"{}", 'no list "inputs"'),
        (JSON, b'{"inputs": [{"a": ', "not valid JSON"),
        (JSON, b'{"inputs": ["\xff"]}', "not valid JSON"),
        (JSON, b'{"inputs": [' + b"[" * 100_000, "nested more than 200 levels"),
        (JSON, b'{"inputs": ' + b'{"a":' * 100_000, "inputs must be a list"),
        (JSON, b'{"inputs": [{"file": "' + b"x" * (17 << 20) + b'"}]}', "longer than 16777216 bytes"),
        (NDJSON, b"x" * (17 << 20), "longer than 16777216 bytes"),
        (CSV, b"id,name\n1,2\n", "no column for the file"),
        (CSV, b"url,url\n", "'url' twice"),
        (CSV, b'url\n"abc', "does not end"),
        (CSV, b"url\n\xff\n", "not UTF-8"),
    ],
)
async def test_an_upload_that_cannot_be_read_says_why(kind: str, body: bytes, said: str) -> None:
    with pytest.raises(UploadError, match=said):
        await read(kind, body)


async def test_a_line_that_cannot_be_read_is_a_bad_row_among_the_others() -> None:
    one, two, three = await read(NDJSON, b'{"file": {"id": "f"}}\n{"file": \n{"file": {"id": "g"}}')
    assert (one, three) == ({"file": {"id": "f"}}, {"file": {"id": "g"}})
    assert "not valid JSON" in two.reason
    (bad,) = await read(CSV, b"url,id\nhttps://a/b\n")
    assert "1 fields, the header 2" in bad.reason


async def test_rows_that_are_no_objects_and_rows_in_any_nesting_are_read_whole() -> None:
    body = b'{"inputs": [1, "a", null, [], {}, [[{"a": [1]}]], {"inputs": [1]}]}'
    assert await read(JSON, body) == [1, "a", None, [], {}, [[{"a": [1]}]], {"inputs": [1]}]


async def test_nothing_is_no_rows() -> None:
    assert await read(NDJSON, b"") == []
    assert await read(CSV, b"url\n") == []
    assert await read(JSON, b'{"inputs": []}') == []


@pytest.mark.parametrize("kind", ["text/csv", "application/x-ndjson"])
async def test_metadata_nested_without_end_are_a_bad_row(kind: str) -> None:
    deep = "[" * 100_000
    line = f'url,metadata\nhttps://x.example/1.pdf,"{deep}"\n' if kind == "text/csv" else f'{{"metadata": {deep}\n'
    (row,) = await read(kind, line.encode())
    assert isinstance(row, Unreadable)
