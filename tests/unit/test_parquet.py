"""Reading the rows of a Parquet manifest."""

from __future__ import annotations

import io
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from everyrun.submission.intake.parse import PARQUET, Options, RowReader
from everyrun.submission.intake.rows import UnreadableRow
from everyrun.submission.intake.text import UploadError


def written(table: pa.Table, **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    parquet.write_table(table, file, **options)
    file.seek(0)
    return file


def damaged(file: io.BytesIO) -> io.BytesIO:
    """Overwrite the first pages after the magic number."""
    content = bytearray(file.getvalue())
    content[4:40] = b"\xff" * 36
    return io.BytesIO(bytes(content))


def rows(options: Options = Options(), **columns: Any) -> list[Any]:  # noqa: B008
    return [value for _, value in RowReader(PARQUET, written(pa.table(columns)), options)]


def test_columns_have_the_meaning_of_a_csv_and_keep_their_types() -> None:
    when = datetime(2026, 5, 1, 10, 30, tzinfo=UTC)
    (row,) = rows(
        id=[17],
        url=["https://files.example.com/17.pdf"],
        name=["17.pdf"],
        password=["secret"],
        year=[2026],
        paid=[True],
        rate=[0.5],
        total=[Decimal("19.90")],
        due=[date(2026, 6, 1)],
        seen=pa.array([when], pa.timestamp("ns", "UTC")),
        tags=[["a", None]],
        vendor=[{"name": "ACME"}],
        codes=pa.array([[("x", 1)]], pa.map_(pa.string(), pa.int64())),
        nothing=pa.array([None], pa.string()),
    )
    assert row == {
        "id": "17",
        "file": {
            "url": "https://files.example.com/17.pdf",
            "name": "17.pdf",
            "settings": {"password": "secret"},
        },
        "metadata": {
            "year": 2026,
            "paid": True,
            "rate": 0.5,
            "total": "19.90",
            "due": "2026-06-01",
            "seen": "2026-05-01T10:30:00+00:00",
            "tags": ["a", None],
            "vendor": {"name": "ACME"},
            "codes": {"x": 1},
            "nothing": None,
        },
    }


def test_metadata_may_be_a_struct_or_json_text() -> None:
    assert rows(text=["a"], metadata=[{"customer": 7}])[0]["metadata"] == {"customer": 7}
    assert rows(text=["a"], metadata=['{"customer": 7}'])[0]["metadata"] == {"customer": 7}
    (bad,) = rows(id=["x"], text=["a"], metadata=["{"])
    assert isinstance(bad, UnreadableRow)
    assert (bad.field, bad.id) == ("metadata", "x")


def test_null_and_empty_text_count_as_missing() -> None:
    first, second = rows(id=[None, ""], url=["https://a.example.com/1", None], file_id=["", "file_2"])
    assert first == {"file": {"url": "https://a.example.com/1"}, "metadata": {}}
    assert second == {"file": {"id": "file_2"}, "metadata": {}}


def test_only_named_columns_go_into_the_metadata_on_the_command_line() -> None:
    options = Options(metadata_columns=("year",), local=True)
    reader = RowReader(PARQUET, written(pa.table({"path": ["a.pdf"], "year": [1], "rest": [2]})), options)
    assert [value for _, value in reader] == [{"file": {"path": "a.pdf"}, "metadata": {"year": 1}}]
    assert reader.columns is not None
    assert reader.columns.ignored == ["rest"]


def test_many_row_groups_give_all_rows_in_order() -> None:
    file = written(pa.table({"id": list(range(2500)), "text": ["t"] * 2500}), row_group_size=700)
    assert [row["id"] for _, row in RowReader(PARQUET, file)] == [str(number) for number in range(2500)]


def test_a_column_with_a_dot_in_its_name_is_read() -> None:
    (row,) = rows(**{"text": ["a"], "a.b": [1], "a": [{"b": 2}]})
    assert row["metadata"] == {"a.b": 1, "a": {"b": 2}}


@pytest.mark.parametrize(("value", "says"), [(float("nan"), "is nan"), (b"\x00", "is binary data")])
def test_a_value_that_json_cannot_hold_is_a_bad_row(value: Any, says: str) -> None:
    bad, good = rows(text=["a", "b"], amount=[value, None])
    assert isinstance(bad, UnreadableRow)
    assert (bad.field, bad.reason) == ("amount", f"{says}, which JSON cannot hold")
    assert good["metadata"] == {"amount": None}


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (io.BytesIO(b"id,url\n1,https://a\n"), "is not a Parquet file"),
        (io.BytesIO(b""), "is not a Parquet file"),
        (damaged(written(pa.table({"text": ["a", "b"]}))), "is a damaged Parquet file"),
        (written(pa.table({"customer": [1]})), "the Parquet file has no column for the file"),
        (written(pa.table({"text": ["a"], "t": pa.array([1], pa.timestamp("ns"))})), "nanoseconds"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(file: io.BytesIO, says: str) -> None:
    with pytest.raises(UploadError, match=says):
        list(RowReader(PARQUET, file))
