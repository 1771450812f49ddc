"""Encode rows of an export as CSV, NDJSON or Parquet. The rows come from Postgres as CSV or JSON, part by part."""

from __future__ import annotations

import asyncio
from typing import Any, Literal, Protocol

from msgspec import Struct

Format = Literal["csv", "ndjson", "parquet"]
Kind = Literal["text", "json", "int", "float", "bool", "time"]

#: The columns of an export, in their order, each with its type. They are those of the view ``flat_results``.
COLUMNS: dict[str, Kind] = {
    "input_id": "text",
    "external_id": "text",
    "submission_id": "text",
    "workflow_id": "text",
    "workflow_version": "text",
    "batch_id": "text",
    "position": "int",
    "file_name": "text",
    "file_url": "text",
    "file_id": "text",
    "metadata": "json",
    "status": "text",
    "settled": "bool",
    "failure_reason": "text",
    "failure_message": "text",
    "run_id": "text",
    "retry": "int",
    "credits": "float",
    "source": "text",
    "accepted_at": "time",
    "submitted_at": "time",
    "observed_at": "time",
    "settled_at": "time",
    "latency_seconds": "float",
    "version": "text",
}
#: The column that an export with extracted values has in addition.
EXTRACTED = "extracted"
#: Columns with few different values, for which Parquet keeps a dictionary.
_FEW_VALUES = (
    *("submission_id", "workflow_id", "workflow_version", "batch_id", "status", "failure_reason", "source", "credits"),
    *("accepted_at", "submitted_at"),
)
#: A group of rows is written to a Parquet file when it has this many bytes in memory.
GROUP_BYTES = 5 << 20


class MediaType(Struct, frozen=True):
    """Holds the names of a format in HTTP and in file names."""

    media_type: str
    suffix: str


MEDIA: dict[Format, MediaType] = {
    "csv": MediaType("text/csv", "csv"),
    "ndjson": MediaType("application/x-ndjson", "ndjson"),
    "parquet": MediaType("application/vnd.apache.parquet", "parquet"),
}


class Encoder(Protocol):
    """Encodes the rows of an export, part after part. Each method returns the bytes that are ready; maybe none."""

    def begin(self) -> bytes:
        """Return what precedes the first row."""

    async def add(self, part: bytes) -> bytes:
        """Encode a part, as Postgres wrote it."""

    async def end(self) -> bytes:
        """Encode what is left, and what follows the last row."""


class PlainEncoder:
    """Passes on CSV or NDJSON as Postgres writes it, after a header."""

    def __init__(self, header: bytes = b"") -> None:
        self._header = header

    def begin(self) -> bytes:
        """Return the header."""
        return self._header

    async def add(self, part: bytes) -> bytes:
        """Return the part unchanged."""
        return part

    async def end(self) -> bytes:
        """Return nothing."""
        return b""


class ParquetEncoder:
    """Writes a Parquet file with typed columns. Memory holds one group of rows, of about GROUP_BYTES.

    Texts, and JSON as text, are strings; times are timestamps in UTC with microseconds.
    """

    def __init__(self, columns: dict[str, Kind]) -> None:
        # Only here: pyarrow takes 35 MB of memory, and most processes of this service never need it.
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {
            "text": pa.string(),
            "json": pa.string(),
            "int": pa.int32(),
            "float": pa.float64(),
            "bool": pa.bool_(),
            "time": pa.timestamp("us", "UTC"),
        }
        self._schema = pa.schema([pa.field(name, types[kind]) for name, kind in columns.items()])
        self._sink = _Sink()
        few = [name for name in _FEW_VALUES if name in columns]
        self._writer = pq.ParquetWriter(self._sink, self._schema, compression="zstd", use_dictionary=few)
        self._tables: list[Any] = []
        self._bytes = 0

    def begin(self) -> bytes:
        """Return the beginning of the file."""
        return self._sink.take()

    async def add(self, part: bytes) -> bytes:
        """Encode a part. The file grows when there are enough rows for a group."""
        return await asyncio.to_thread(self._add, part)

    async def end(self) -> bytes:
        """Write the last group, and the index of the file."""
        return await asyncio.to_thread(self._end)

    def _add(self, part: bytes) -> bytes:
        if part:
            table = self._parsed(part)
            self._tables.append(table)
            self._bytes += table.nbytes
        if self._bytes >= GROUP_BYTES:
            self._write_group()
        return self._sink.take()

    def _end(self) -> bytes:
        if self._tables:
            self._write_group()
        self._writer.close()
        return self._sink.take()

    def _parsed(self, part: bytes) -> Any:
        import pyarrow as pa
        from pyarrow import csv

        return csv.read_csv(
            pa.BufferReader(part),
            # One block: a row may be larger than any block of fixed size.
            csv.ReadOptions(column_names=self._schema.names, use_threads=False, block_size=len(part) + 1),
            csv.ParseOptions(newlines_in_values=True),
            # Postgres writes null as nothing, and an empty text as "".
            csv.ConvertOptions(
                column_types=self._schema,
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                true_values=["t"],
                false_values=["f"],
            ),
        )

    def _write_group(self) -> None:
        import pyarrow as pa

        group = pa.concat_tables(self._tables)
        self._writer.write_table(group, row_group_size=max(group.num_rows, 1))
        self._tables, self._bytes = [], 0


class _Sink:
    """A file in memory that is emptied while it is written."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._written = 0

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        self._written += len(data)
        return len(data)

    def take(self) -> bytes:
        """Return what was written since the last call."""
        taken, self._parts = b"".join(self._parts), []
        return taken

    def tell(self) -> int:
        return self._written

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def encoder_of(format_: Format, columns: dict[str, Kind]) -> Encoder:
    """Return a new encoder."""
    if format_ == "parquet":
        return ParquetEncoder(columns)
    return PlainEncoder((",".join(columns) + "\n").encode() if format_ == "csv" else b"")
