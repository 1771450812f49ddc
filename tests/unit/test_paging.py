"""Cursors are bound to their filters, and parameters that no row can have are refused."""

from __future__ import annotations

import pytest

from everyrun.http import InvalidFieldError
from everyrun.query.paging import check_text, make_cursor, next_cursor, read_cursor, read_numbered_cursor

FILTERS = {"status": "FAILED"}


def test_cursor_gives_the_last_key_back() -> None:
    assert read_cursor(FILTERS, None) is None
    assert read_cursor(FILTERS, make_cursor(FILTERS, "sub_1:a")) == "sub_1:a"
    assert read_numbered_cursor(FILTERS, None) == ("", 0)
    assert read_numbered_cursor(FILTERS, make_cursor(FILTERS, "sub_1.c2/17")) == ("sub_1.c2", 17)


def test_cursor_of_other_filters_is_refused() -> None:
    with pytest.raises(InvalidFieldError, match="other filters") as refused:
        read_cursor({"status": None}, make_cursor(FILTERS, "a"))
    assert refused.value.details() == {"field": "cursor"}


@pytest.mark.parametrize("cursor", ["", "?", "bm8", make_cursor(FILTERS, "a\x00")])
def test_malformed_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidFieldError, match=r"^cursor: "):
        read_cursor(FILTERS, cursor)


@pytest.mark.parametrize("last", ["a", "a/b", "a/1234567890"])
def test_cursor_without_a_number_is_refused(last: str) -> None:
    with pytest.raises(InvalidFieldError, match="malformed"):
        read_numbered_cursor(FILTERS, make_cursor(FILTERS, last))


def test_last_page_has_no_cursor() -> None:
    rows = [{"id": "a"}, {"id": "b"}]
    assert next_cursor(FILTERS, rows, 2, lambda row: row["id"]) is None  # type: ignore[arg-type]
    more = next_cursor(FILTERS, rows, 1, lambda row: row["id"])  # type: ignore[arg-type]
    assert read_cursor(FILTERS, more) == "a"


@pytest.mark.parametrize("value", ["a\x00b", "a\nb", "\u202e"])
def test_text_that_cannot_be_printed_is_refused(value: str) -> None:
    with pytest.raises(InvalidFieldError, match=r"^reason: has a"):
        check_text(reason=value, batch_id=None)
