"""Text that Postgres refuses is made storable."""

from __future__ import annotations

from everyrun.store.storable import storable_json, storable_text


def test_json_that_postgres_refuses_is_replaced_and_other_json_is_unchanged() -> None:
    assert storable_json(rb'"a\u0000b"') == rb'"a\ufffdb"'
    assert storable_json(rb'"a\\u0000b"') == rb'"a\\u0000b"'
    assert storable_json(rb'"a\\\u0000b"') == rb'"a\\\ufffdb"'
    assert storable_json(rb'"\ud83d\ude00 \ud83d \ude00"') == rb'"\ud83d\ude00 \ufffd \ufffd"'
    assert storable_json(rb'"\u0000\u0000"') == rb'"\ufffd\ufffd"'


def test_a_nul_in_text_is_replaced() -> None:
    assert storable_text("a\x00b") == "a\ufffdb"
