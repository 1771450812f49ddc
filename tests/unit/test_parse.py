"""The rows of a manifest do not depend on its format, nor on the parts in which a body arrives."""

from __future__ import annotations

import asyncio
import codecs
import csv
import io
import itertools
import json
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everyrun.submission.intake.parse import (
    CSV,
    JSON,
    NDJSON,
    Options,
    RowReader,
    UnreadableRow,
    UploadError,
    read_rows,
)
from everyrun.submission.intake.rows import BadRow, GoodRow, check_row

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
    {"id": "b", "file": {"text": 'two\nlines, and a " mark'}, "metadata": {"customer": ""}},
    {"file": {"id": "file_1"}, "metadata": {"customer": "c-3"}},
]


def plain(given: Any) -> Any:
    return given if isinstance(given, UnreadableRow) else msgspec.to_builtins(given)


def read_all(kind: str, body: bytes, **options: Any) -> list[Any]:
    return [plain(value) for _, value in RowReader(kind, io.BytesIO(body), Options(**options))]


def lines(kind: str, body: bytes, **options: Any) -> list[int]:
    return [line for line, _ in RowReader(kind, io.BytesIO(body), Options(**options))]


async def read(kind: str, body: bytes, cuts: list[int] | None = None) -> list[Any]:
    places = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts or [])})

    async def parts() -> AsyncIterator[bytes]:
        for start, end in itertools.pairwise(places):
            yield body[start:end]

    return [plain(given) async for piece in read_rows(kind, parts()) for _, given in piece]


cuts = st.lists(st.integers(0, 10_000), max_size=12)


@pytest.mark.parametrize(
    ("kind", "body", "wanted"), [(JSON, AS_JSON, ROWS), (NDJSON, AS_NDJSON, ROWS), (CSV, AS_CSV, FROM_CSV)]
)
@given(cuts=cuts)
async def test_rows_do_not_depend_on_the_parts_of_the_body(
    kind: str, body: bytes, wanted: list[Any], cuts: list[int]
) -> None:
    assert await read(kind, body, cuts) == wanted


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        (JSON, b"[]", "must be an object"),
        (JSON, b'{"rows": []}', 'unknown field "rows"'),
        (JSON, b'{"inputs": [1], "more": 1}', "unknown field after the list"),
        (JSON, b'{"inputs": [1 2]}', "a comma after row 1 is missing on line 1"),
        (JSON, b'{"inputs": [1,\n]}', "row 2 is missing on line 2"),
        (JSON, b'{"inputs": [1}', "a comma after row 1 is missing"),
        (JSON, b'{"inputs": [1]} 2', "there is text after its end"),
        (JSON, b"{inputs: [1]}", "a field is missing"),
        (JSON, b'{"inputs": {}}', "inputs must be a list"),
        (JSON, b"{}", 'no list "inputs"'),
        (JSON, b'{"inputs": [{"a": ', "not valid JSON"),
        (JSON, b'{"inputs": ["\xff"]}', "line 1 is not UTF-8"),
        (JSON, b'{"inputs": [' + b"[" * 100_000, "ends within row 1"),
        (JSON, b'{"inputs": ' + b'{"a":' * 100_000, "inputs must be a list"),
        (JSON, b'{"inputs": [{"file": "' + b"x" * (17 << 20) + b'"}]}', "longer than 16777216 bytes"),
        (JSON, b'{"inputs": [' + b" " * (33 << 20), "is missing"),
        (NDJSON, b'"a"\n"M\xfcller"\n', "line 2 is not UTF-8: byte 0xFC .in Windows-1252 it would read 'M\u00fcller'"),
        (CSV, b"id,name\n1,2\n", "no column for the file"),
        (CSV, b"url,url\n", "'url' twice"),
        (CSV, b"url,URL\n", "'url' twice"),
        (CSV, b'url\n"' + b"abc\n" * (5 << 20), "row 1, which begins on line 2, is longer than"),
        (CSV, b"url\n" + b"x" * (17 << 20), "row 1, which begins on line 2, is longer than"),
        (CSV, b'"url"x\n1\n', "the header .line 1. is not valid CSV"),
        (CSV, b'url\na\n"b\nM\xfcller"\n', "line 4 is not UTF-8"),
        (CSV, "url\nM\u00fcller\n".encode("utf-16")[:-1], "not utf-16-le: truncated data"),
    ],
)
async def test_an_unreadable_upload_is_refused_with_the_reason(kind: str, body: bytes, said: str) -> None:
    with pytest.raises(UploadError, match=said):
        await read(kind, body)


async def test_an_unreadable_line_is_only_a_bad_row() -> None:
    one, two, three = await read(NDJSON, b'{"file": {"id": "f"}}\n{"file": \n{"file": {"id": "g"}}')
    assert (one, three) == ({"file": {"id": "f"}}, {"file": {"id": "g"}})
    assert "not valid JSON" in two.reason
    (bad,) = await read(CSV, b"url,id\nhttps://a/b\n")
    assert "1 fields, the header 2" in bad.reason
    one, two = await read(NDJSON, b"x" * (33 << 20) + b"\n1\n")
    assert "longer than 16777216 bytes" in one.reason
    assert two == 1


async def test_nested_rows_and_rows_that_are_not_objects_are_read_whole() -> None:
    body = b'{"inputs": [1, "a", null, [], {}, [[{"a": [1]}]], {"inputs": [1]}]}'
    assert await read(JSON, body) == [1, "a", None, [], {}, [[{"a": [1]}]], {"inputs": [1]}]


async def test_an_empty_body_has_no_rows() -> None:
    assert await read(NDJSON, b"") == []
    assert await read(CSV, b"url\n") == []
    assert await read(JSON, b'{"inputs": []}') == []


@pytest.mark.parametrize("kind", ["text/csv", "application/x-ndjson"])
async def test_endlessly_nested_metadata_is_a_bad_row(kind: str) -> None:
    deep = "[" * 100_000
    line = f'url,metadata\nhttps://x.example/1.pdf,"{deep}"\n' if kind == "text/csv" else f'{{"metadata": {deep}\n'
    (row,) = await read(kind, line.encode())
    assert isinstance(row, UnreadableRow)


# --- one reader for the service and the command line

SCALARS = (
    *("0", "-1", "1.5", "1e2", "0.1", "12345678901234567890", "-9223372036854775809", "1" * 40),
    *("1e400", "-1e999", "0.12345678901234567890", "9007199254740993.0", "true", "null"),
    *('"a"', '"\\u00e9"', '"Jo\\ud83d"', '"\\ud83d\\ude00"', '"\\u0000"', '"\\\\"', '"]}"', '"\\""', '"\U0001f600"'),
)
json_texts = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: "[" + ", ".join(parts) + "]")
        | st.lists(
            st.tuples(st.sampled_from(["a", "b", "everyrun:x"]), inner), max_size=3, unique_by=lambda pair: pair[0]
        ).map(lambda pairs: "{" + ",".join(f'"{name}" : {value}' for name, value in pairs) + "}")
    ),
    max_leaves=6,
)
row_texts = json_texts | st.builds(
    lambda id, url, metadata: f'{{"id": {id}, "file": {{"url": {url}}}, "metadata": {metadata}}}',
    st.sampled_from(['"a"', '""', "5", '"Jo\\ud83d"', '"\u00e9"']),
    st.sampled_from(['"https://e.com/a.pdf"', '"ftp://e.com"', '"https://e.com/a b"']),
    json_texts,
)


def verdicts(kind: str, body: bytes) -> list[Any]:
    return [check_row(number, value, "sub_x", 900_000) for number, value in enumerate(values(kind, body), 1)]


def values(kind: str, body: bytes) -> list[Any]:
    return [value for _, value in RowReader(kind, io.BytesIO(body))]


@given(st.lists(row_texts, max_size=6))
def test_json_and_ndjson_give_equal_unchanged_rows(texts: list[str]) -> None:
    as_ndjson = verdicts(NDJSON, "\n".join(texts).encode())
    assert verdicts(JSON, ('{"inputs": [' + ",\n ".join(texts) + "]}").encode()) == as_ndjson
    for text, row in zip(texts, as_ndjson, strict=True):
        if isinstance(row, GoodRow):
            wanted = json.loads(text, parse_float=Decimal)["metadata"] or {}
            assert json.loads(row.metadata, parse_float=Decimal) == wanted


@given(st.lists(st.tuples(st.sampled_from(["a", "", "\u00e9"]), json_texts), max_size=5))
def test_csv_gives_the_same_rows_as_json(given_rows: list[tuple[str, str]]) -> None:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["id", "url", "metadata"])
    texts = []
    for id, metadata in given_rows:
        writer.writerow([id, "https://e.com/a.pdf", metadata])
        own = f'"id": {json.dumps(id)}, ' if id else ""
        texts.append(f'{{{own}"file": {{"url": "https://e.com/a.pdf"}}, "metadata": {metadata}}}')
    for by_csv, by_json in zip(
        verdicts(CSV, out.getvalue().encode()), verdicts(NDJSON, "\n".join(texts).encode()), strict=True
    ):
        if isinstance(by_json, BadRow):
            assert isinstance(by_csv, BadRow)
        else:
            assert by_csv == by_json


@pytest.mark.parametrize("kind", [JSON, NDJSON, CSV])
@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16", "utf-32", "utf-16-be-sig"])
def test_a_byte_order_mark_decides_the_encoding(kind: str, mark: str) -> None:
    body = {
        JSON: '{"inputs": [{"file": {"url": "\u00e9"}}]}',
        NDJSON: '{"file": {"url": "\u00e9"}}\n',
        CSV: "url\n\u00e9\n",
    }
    text = body[kind]
    encoded = codecs.BOM_UTF16_BE + text.encode("utf-16-be") if mark == "utf-16-be-sig" else text.encode(mark)
    (row,) = read_all(kind, encoded)
    assert row["file"] == {"url": "\u00e9"}


@pytest.mark.parametrize(
    "name", ["hex", "zip", "rot13", "punycode", "unicode_escape", "no such", "a\x00b", "\udcff", "idna"]
)
def test_only_text_encodings_are_accepted(name: str) -> None:
    with pytest.raises(UploadError, match="is not a known encoding"):
        read_all(NDJSON, b"1\n", encoding=name)


@pytest.mark.parametrize("encoding", ["windows-1252", "windows1252", "Latin-1", "cp850", "mac-roman", "gbk"])
@pytest.mark.parametrize("long", [False, True])
def test_utf8_is_not_read_as_another_encoding(encoding: str, long: bool) -> None:
    body = "url,customer\nhttps://x.example/1.pdf,M\u00fcller\n" + "https://x.example/1.pdf,Meier\n" * 9000 * long
    for kind, content in ((CSV, body.encode()), (NDJSON, b'{"id": "M\xc3\xbcller"}\n' + b"\n" * 99_999 * long)):
        with pytest.raises(UploadError, match=r"valid UTF-8 \(it has 'M\u00fcller'\).*Leave the encoding out"):
            read_all(kind, content, encoding=encoding)
    # ASCII is the same in both, and of one byte that is not UTF-8 the file is what it is named.
    assert read_all(CSV, b"url\nhttps://x.example/1.pdf\n", encoding=encoding)
    if encoding != "gbk":
        (row,) = read_all(CSV, b"url,c,d\nhttps://x.example/1.pdf,M\xc3\xbcller,\xfc\n", encoding=encoding)
        assert len(row["metadata"]["c"]) == 7


def test_utf16_without_a_mark_is_read_by_its_name() -> None:
    body = "url,c\nhttps://x.example/1.pdf,M\u00fcller\n".encode("utf-16-le")
    assert read_all(CSV, body, encoding="utf-16-le")[0]["metadata"] == {"c": "M\u00fcller"}


def test_an_empty_field_of_a_metadata_column_is_kept() -> None:
    body = b"id,url,text,customer,year\n1,https://x.example/1.pdf,,,2026\n"
    (row,) = read_all(CSV, body, metadata_columns=("customer",))
    assert row == {"id": "1", "file": {"url": "https://x.example/1.pdf"}, "metadata": {"customer": ""}}
    assert read_all(CSV, body)[0]["metadata"] == {"customer": "", "year": "2026"}


URL = '"file": {"url": "https://x.example/1.pdf"}'
TWICE = [
    ('{"id": "a", %s, "metadata": {"x": 1, "x": 2}}', "metadata", "x"),
    ('{"id": "a", %s, "metadata": {"x" : {"y": [0, {"k": 1, "\\u006b": 1}]}}}', "metadata", "k"),
    ('{"id": "a", %s, "metadata": {"": 1, "": 2, "z": "\\":"}}', "metadata", ""),
    ('{"id": "a", %s, "metadata": {"n": 1e5, "n": 12345678901234567890}}', "metadata", "n"),
    ('{"id": "a", "id": "b", %s}', "", "id"),
    ('{"id": "a", %s, "file": {"id": "file_1"}}', "", "file"),
    ('{"id": "a", "file": {"url": "https://x.example/1.pdf", "url": "https://x.example/2.pdf"}}', "file", "url"),
    ('{"id": "a", "file": {"text": "t", "text": "u"}, "metadata": {}}', "file", "text"),
]


@pytest.mark.parametrize(("row", "field", "key"), TWICE)
def test_a_key_that_stands_twice_makes_a_bad_row(row: str, field: str, key: str) -> None:
    text = (row % URL if "%s" in row else row).encode()
    expected = {"id": "b" if key == "id" else "a", "field": field}
    for kind, body in ((NDJSON, text), (JSON, b'{"inputs": [%s]}' % text)):
        (bad,) = read_all(kind, body)
        assert isinstance(bad, UnreadableRow)
        assert {"id": bad.id, "field": bad.field} == expected
        assert f"has the key {key!r} twice" in bad.reason
    metadata = text.partition(b'"metadata": ')[2].decode()[:-1]
    if field == "metadata":
        written = io.StringIO()
        csv.writer(written).writerows([["id", "url", "metadata"], ["a", "https://x.example/1.pdf", metadata]])
        (bad,) = read_all(CSV, written.getvalue().encode())
        assert isinstance(bad, UnreadableRow)
        assert (bad.id, bad.field) == ("a", "metadata")


@pytest.mark.parametrize(
    "metadata",
    [
        '{"a": ":", "b": "\\":", "c": {"a": 1}, "d": [{"a": 1}, {"a": 1}]}',
        "null",
        "{}",
        '{"\\"": "\\":\\":"}',
        '{"a" :1}',
    ],
)
def test_a_key_that_stands_once_in_each_object_is_no_error(metadata: str) -> None:
    text = f'{{"id": null, {URL}, "metadata": {metadata}}}'.encode()
    (row,) = read_all(NDJSON, text)
    assert row.get("metadata") == json.loads(metadata)


def test_a_csv_of_excel_in_german_is_read() -> None:
    body = "sep=;\r\nID;URL;Lieferant\r\n1;https://e.com/1.pdf;M\u00fcller\r\n;;\r\n".encode("cp1252")
    assert read_all(CSV, body, encoding="windows-1252") == [
        {"id": "1", "file": {"url": "https://e.com/1.pdf"}, "metadata": {"Lieferant": "M\u00fcller"}}
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiter_is_detected(delimiter: str) -> None:
    body = delimiter.join(["a,b;c\td", "id", "url"]).replace("a,b;c\td", '"a,b;c\td"') + "\n"
    body += delimiter.join(["x", "1", "https://e.com"]) + "\n"
    (row,) = read_all(CSV, body.encode())
    assert row == {"id": "1", "file": {"url": "https://e.com"}, "metadata": {"a,b;c\td": "x"}}


def test_a_stray_quote_spoils_one_row_and_an_open_quote_names_its_row() -> None:
    good = "9,https://e.com/a.pdf,x\n"
    body = 'id,url,note\n1,https://e.com/a.pdf,12" screen\n2,https://e.com/a.pdf,"12" screen"\n' + good
    one, two, three = read_all(CSV, body.encode())
    assert one["metadata"] == {"note": '12" screen'}
    assert "for a quote inside a quoted field" in two.reason
    assert three["id"] == "9"
    body = 'id,url,note\n1,https://e.com/a.pdf,x\n2,https://e.com/a.pdf,"12 screen\n' + good * 100_000
    one, two = read_all(CSV, body.encode())
    assert "does not end, so everything down to line 100003" in two.reason
    assert lines(CSV, body.encode()) == [2, 3]


def test_an_open_quote_takes_linear_time() -> None:
    def seconds(count: int) -> float:
        body = b'id,url,note\n1,https://e.com/a.pdf,"12 screen\n' + b"9,https://e.com/a.pdf,x\n" * count
        began = time.process_time()
        assert len(read_all(CSV, body)) == 1
        return time.process_time() - began

    seconds(1000)
    # Ten times the input takes ten times as long. Quadratic time would be a hundred times as long.
    assert min(seconds(50_000) for _ in range(3)) < 30 * min(seconds(5_000) for _ in range(3))


async def test_reading_a_body_does_not_block_the_event_loop() -> None:
    body = b'id,url,note\n1,https://e.com/a.pdf,"12 screen\n' + b"9,https://e.com/a.pdf,x\n" * 400_000
    waits, done = [0.0], asyncio.Event()

    async def watch() -> None:
        last = time.monotonic()
        while not done.is_set():
            await asyncio.sleep(0.001)
            now = time.monotonic()
            waits.append(now - last)
            last = now

    watching = asyncio.create_task(watch())
    began = time.monotonic()
    assert len(await read(CSV, body)) == 1
    took = time.monotonic() - began
    done.set()
    await watching
    assert max(waits) < max(took / 3, 0.2)


def test_a_long_text_spoils_only_its_row_in_every_format() -> None:
    text = "x" * 200_000
    assert [row["file"]["text"] for row in read_all(CSV, f"text\n{text}\n".encode())] == [text]
    for body, kind in (
        (f"text\n{text * 5}\na\n", CSV),
        (f'{{"file":{{"text":"{text * 5}"}}}}\n{{"file":{{"text":"a"}}}}', NDJSON),
    ):
        one, two = [check_row(1, value, "sub_x", 900_000) for value in values(kind, body.encode())]
        assert isinstance(one, BadRow)
        assert "the maximum is 900000" in one.reason
        assert not isinstance(two, BadRow)


def test_each_row_has_its_first_line() -> None:
    assert lines(NDJSON, b"1\n\n2\n") == [1, 3]
    assert lines(JSON, b'{"inputs":\n[1,\n\n{"a":\n2},3]}') == [2, 4, 5]
    assert lines(CSV, b'\n\nurl\n"a\nb"\n\nc\n') == [4, 7]
