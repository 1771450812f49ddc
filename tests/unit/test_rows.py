"""Checking rows: which are accepted, and which field of a bad row is wrong."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everyrun.submission.intake.rows import (
    REDACTED,
    BadRow,
    GoodRow,
    QuickRow,
    UnreadableRow,
    _QuickFile,
    check_row,
    redact_file,
    redacted_json,
)

MAX = 900_000
URL = {"url": "https://files.example.com/1.pdf"}


def check(row: Any, number: int = 7) -> GoodRow | BadRow:
    return check_row(number, row, "sub_x", MAX)


@pytest.mark.parametrize(
    ("row", "field", "said"),
    [
        ([], "", "a row is an object"),
        ({"id": "a"}, "file", "is required"),
        ({"file": {}}, "file", "exactly one of url, id, text and object"),
        ({"file": {"url": "https://a/b", "text": "x"}}, "file", "it has text, url"),
        ({"file": {"id": "file_1", "name": "x"}}, "file.name", "unknown for a file with id"),
        ({"file": {"url": ""}}, "file.url", "not empty text"),
        ({"file": {"url": 5}}, "file.url", "not a number"),
        ({"file": {"url": "ftp://a/b"}}, "file.url", "not an http or https URL"),
        ({"file": {"url": "https://a/b c"}}, "file.url", "%20"),
        ({"file": {"url": "https://a/b\u00a0c"}}, "file.url", "not an http or https URL"),
        ({"file": {"url": "https://a:99999/b"}}, "file.url", "not an http or https URL"),
        ({"file": {**URL, "settings": {"pass": "x"}}}, "file.settings", "password"),
        ({"file": URL, "id": 5}, "id", "must be text, not a number"),
        ({"file": URL, "id": ""}, "id", "1 to 255"),
        ({"file": URL, "id": "x" * 256}, "id", "this has 256"),
        ({"file": URL, "id": "a\tb"}, "id", "cannot be printed"),
        ({"file": URL, "metadata": [1]}, "metadata", "must be an object, not a list"),
        ({"file": URL, "metadata": "no"}, "metadata", "must be an object, not text"),
        ({"file": {"object": "s3://bucket/"}}, "file.object", "names no object"),
        ({"file": {"url": "s3://key:secret@bucket/a.pdf"}}, "file.object", "not an address of the form"),
        ({"file": {"object": "s3://bucket/a.pdf", "etag": 5}}, "file.etag", "not a number"),
        ({"file": {"object": "s3://bucket/a.pdf", **URL}}, "file", "it has object, url"),
        ({"file": {**URL, "redacted": True}}, "file.redacted", "give a new link"),
        ({"file": {"url": URL["url"] + REDACTED}}, "file.url", "give a new link"),
        (QuickRow(file=_QuickFile(URL["url"] + REDACTED)), "file.url", "give a new link"),
        (UnreadableRow("broken", "metadata"), "metadata", "broken"),
        ({"file": URL, "metadata": {"everyrun:x": 1}}, "metadata.everyrun:x", "are reserved for Everyrun"),
        ({"file": URL, "metadata": {"a": "x" * 10_240}}, "metadata", "Extend accepts 10240"),
        ({"file": URL, "metadata": {"a": "\x00"}}, "metadata", "NUL"),
        ({"file": {"text": "a" * MAX}}, "file", "the maximum is 900000"),
        ({"file": URL, "secrets": {}}, "secrets", "not supported yet"),
        ({"file": URL, "meta": {}}, "meta", "unknown field"),
    ],
)
def test_a_bad_row_is_named_with_its_field_and_the_reason(row: Any, field: str, said: str) -> None:
    bad = check(row)
    assert isinstance(bad, BadRow)
    assert (bad.row, bad.field) == (7, field)
    assert said in bad.reason


def test_a_row_without_an_id_gets_its_number() -> None:
    good = check({"file": {"name": "1.pdf", **URL}, "metadata": None})
    assert isinstance(good, GoodRow)
    assert (good.position, good.external_id) == (7, "7")
    # In a fixed order, so that equal files give equal text.
    assert good.file == b'{"url":"https://files.example.com/1.pdf","name":"1.pdf"}'
    assert good.metadata == b"{}"


texts = st.sampled_from(
    ["", "a", "a b", "\u00e9", "\U0001f600", "x\u00a0y", "\t", "\x00", "\\", '"', "a" * 256, "everyrun:x", "http://"]
)
urls = st.one_of(
    texts,
    st.builds(
        "{}://{}{}".format,
        st.sampled_from(["http", "https", "HTTPS", "ftp"]),
        st.sampled_from(["a.example", "a.example:443", "a.example:0", "u@a", "", "[::1]", "[", "\u00e9.example"]),
        st.sampled_from(["", "/", "/a.pdf?x=1#y", "/a b", "/\u00e9", "?q", "/\\", "/[1]"]),
    ),
)
values = st.one_of(st.none(), st.booleans(), st.integers(), st.integers(2**64, 2**70), texts)
rows = st.fixed_dictionaries(
    {"file": st.fixed_dictionaries({"url": urls}, optional={"name": texts, "settings": st.just({"password": "p"})})},
    optional={
        "id": st.none() | texts | st.integers(0, 3),
        "metadata": st.none() | st.dictionaries(texts, values | st.just("x" * 10_000), max_size=3),
    },
)


@given(rows)
def test_the_quick_check_agrees_with_the_full_check(row: Any) -> None:
    text = msgspec.json.encode(row) if all_encodable(row) else None
    if text is None:
        return
    try:
        quick = msgspec.json.decode(text, type=QuickRow)
    except msgspec.DecodeError:
        return
    assert check(quick) == check(msgspec.json.decode(text))


def all_encodable(row: Any) -> bool:
    try:
        msgspec.json.encode(row)
    except (ValueError, OverflowError):
        return False
    return True


def test_secrets_are_redacted() -> None:
    shown = redact_file({"url": "https://me:pw@a/b.pdf?X-Sig=1#f", "name": "b", "settings": {"password": "p"}})
    assert shown == {"url": "https://a/b.pdf", "name": "b", "redacted": True}
    assert redact_file({"url": "https://a/b.pdf"}) == {"url": "https://a/b.pdf"}
    assert redact_file({"id": "file_1"}) == {"id": "file_1"}


@pytest.mark.parametrize(
    "file",
    [
        {"url": "https://files.example/1.pdf"},
        {"url": "https://files.example/1.pdf?a=b@c#d", "name": "n.pdf"},
        {"url": "http://files.example:8080/a;b/1.pdf#top"},
        {"url": "https://user:word@files.example/1.pdf?x"},
        {"url": "https://files.example/1.pdf?"},
        {"url": "https://files.example?x=1"},
        {"url": 'https://files.example/"quoted".pdf?x="y"'},
        {"url": "https://files.example/ä/1.pdf?ö=1"},
        {"url": "https://files.example/1.pdf", "settings": {"password": "secret"}},
        {"url": "https://files.example/1.pdf?x", "name": 'a "b"', "settings": {"password": "secret"}},
        {"text": "what? #1 @home", "name": "t"},
        {"id": "file_1"},
    ],
)
def test_the_hash_for_the_log_is_of_redacted_content(file) -> None:
    assert redacted_json(msgspec.json.encode(file)) == msgspec.json.encode(redact_file(file))


def test_an_object_may_be_named_as_a_url_and_stays_as_it_is_in_the_log() -> None:
    """The address of an object holds no secret, even if its key looks like a query."""
    address = "s3://invoices/in/q?x#y@z.pdf"
    rows = [check({"id": "a", "file": {kind: address, "etag": "1", "name": "n.pdf"}}) for kind in ("url", "object")]
    assert rows[0] == rows[1]
    assert isinstance(rows[0], GoodRow)
    assert rows[0].file == b'{"object":"s3://invoices/in/q?x#y@z.pdf","etag":"1","name":"n.pdf"}'
    assert redacted_json(rows[0].file) == rows[0].file
    locked = check({"id": "a", "file": {"object": address, "settings": {"password": "secret"}}})
    assert isinstance(locked, GoodRow)
    assert b"secret" not in redacted_json(locked.file)
