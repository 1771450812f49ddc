"""An export continues from the state that its cursor names, and statements take values only as parameters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from everyrun.http import InvalidFieldError
from everyrun.query.export_reader import Export, State, ahead, export_cursor, part_statement, read_export_cursor
from everyrun.query.filters import Filter

WANTED, STATE = Filter(submission_id="s", text="x"), State("7/00000001/16424", 1000)


def test_a_cursor_leads_to_the_rows_that_changed_since() -> None:
    cursor = export_cursor(WANTED, STATE)
    assert read_export_cursor(WANTED, cursor, State(STATE.tables, 2000)) == 1000
    assert read_export_cursor(WANTED, cursor, STATE) == 1000
    assert read_export_cursor(WANTED, None, STATE) is None


@pytest.mark.parametrize(
    "now", [State("8/00000001/16424", 2000), State("7/00000002/16424", 2000), State("7/00000001/9", 2000)]
)
def test_in_other_tables_all_rows_are_exported(now: State) -> None:
    assert read_export_cursor(WANTED, export_cursor(WANTED, STATE), now) is None


def test_a_number_from_the_future_is_of_another_server() -> None:
    assert read_export_cursor(WANTED, export_cursor(WANTED, STATE), State(STATE.tables, 999)) is None


@pytest.mark.parametrize("cursor", ["", "x", export_cursor(Filter(submission_id="s"), STATE)])
def test_another_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidFieldError) as refused:
        read_export_cursor(WANTED, cursor, STATE)
    assert refused.value.details() == {"field": "since"}


@pytest.mark.parametrize("format_", ["csv", "ndjson", "parquet"])
def test_values_are_parameters(format_: str) -> None:
    hostile = "'; drop table x; --"
    asked = Export(Filter(submission_id=hostile, text=hostile), format_, True, 7)  # type: ignore[arg-type]
    text, values = part_statement(asked, hostile, hostile)
    assert hostile not in text
    assert "/*" not in text
    assert values == [hostile, hostile, 7, hostile, hostile, hostile]


def test_without_filters_only_the_range_is_read() -> None:
    text, values = part_statement(Export(Filter(submission_id="s"), "csv"), "s:", "s:9")
    assert " in (" not in text
    assert values == ["s:", "s:9", "s"]


async def test_the_next_part_is_fetched_ahead_and_given_up_with_the_reader() -> None:
    fetched: list[int] = []
    given_up = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        for number in range(2):
            fetched.append(number)
            yield b"%d" % number
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            given_up.set()
            raise

    reader = ahead(source())
    assert await anext(reader) == b"0"
    await asyncio.sleep(0)
    assert fetched == [0, 1]
    assert await anext(reader) == b"1"
    await asyncio.sleep(0)
    await reader.aclose()  # type: ignore[attr-defined]
    assert given_up.is_set()


async def test_an_error_of_the_source_reaches_the_reader() -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b""
        raise OSError("gone")

    reader = ahead(source())
    assert await anext(reader) == b""
    with pytest.raises(OSError, match="gone"):
        await anext(reader)
