"""Read the rows of a Parquet manifest, a group of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from typing import IO, Any

import pyarrow as pa
from pyarrow import parquet

from everyrun.submission.intake.columns import Columns
from everyrun.submission.intake.rows import UnreadableRow
from everyrun.submission.intake.text import UploadError

#: Number of rows that are decoded at a time.
_ROWS = 1000


class _NoJsonError(Exception):
    """A value that JSON has no form for. The text says what it is."""


class ParquetTable:
    """A Parquet file as a table of rows. Raises UploadError if it is not a Parquet file."""

    def __init__(self, file: IO[bytes]) -> None:
        try:
            self._file = parquet.ParquetFile(file)
            #: The names of the columns.
            self.header: list[str] = list(self._file.schema_arrow.names)
        except (pa.ArrowException, OSError) as error:
            raise UploadError(f"is not a Parquet file: {_first_line(error)}") from None

    def rows(self, columns: Columns) -> Iterator[tuple[int, Any]]:
        """Yield each row as :meth:`Columns.typed_row` returns it, with 0 for the line: a Parquet file has none.

        Only the columns that have a use are decoded. Raises UploadError if the file is damaged.
        """
        used = sorted({*columns.indexes.values(), *(index for index, _ in columns.metadata)})
        # A column of the file with a dot in its name is the same to pyarrow as a field in a struct. So a name may
        # select too many columns, but never too few.
        wanted = [self.header[index] for index in used]
        try:
            for batch in self._file.iter_batches(_ROWS, columns=wanted):
                yield from self._rows_of(batch, columns, used)
        except (pa.ArrowException, OSError) as error:
            raise UploadError(f"is a damaged Parquet file: {_first_line(error)}") from None

    def _rows_of(self, batch: Any, columns: Columns, used: list[int]) -> Iterator[tuple[int, Any]]:
        values = {index: _values(batch.column(self.header[index]), self.header[index]) for index in used}
        width = len(self.header)
        for number in range(batch.num_rows):
            row: list[Any] = [None] * width
            bad: UnreadableRow | None = None
            for index in used:
                try:
                    row[index] = _json(values[index][number])
                except _NoJsonError as error:
                    bad = UnreadableRow(f"{error}, which JSON cannot hold", self.header[index])
            yield 0, bad or columns.typed_row(row)


def _values(column: Any, name: str) -> list[Any]:
    """Return the values of a column. Raises UploadError for times that are more exact than a microsecond."""
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        try:
            column = column.cast(pa.timestamp("us", column.type.tz))
        except pa.ArrowInvalid:
            raise UploadError(f"the column {name!r} has times with nanoseconds; round them to microseconds") from None
    return list(column.to_pylist())


def _json(value: Any) -> Any:
    """Return a value as JSON types. Dates and times become ISO 8601 text; decimals become text, so they stay exact."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _NoJsonError(f"is {value}")
        return value
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, dict):
        return {name: _json(part) for name, part in value.items()}
    if isinstance(value, list):
        # The entries of a map are pairs.
        if value and all(isinstance(part, tuple) for part in value):
            return {str(name): _json(part) for name, part in value}
        return [_json(part) for part in value]
    kinds = {bytes: "binary data"}
    raise _NoJsonError(f"is {kinds.get(type(value), type(value).__name__)}")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
