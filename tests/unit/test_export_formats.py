"""Encoders turn what Postgres writes into files, and load pyarrow only for Parquet."""

from __future__ import annotations

import io
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pyarrow.parquet as pq
import pytest

from everyrun.query import export_formats
from everyrun.query.export_formats import COLUMNS, Encoder, Kind, encoder_of

TYPES: dict[str, Kind] = {"a": "text", "b": "json", "c": "int", "d": "float", "e": "bool", "f": "time"}


async def encoded(encoder: Encoder, *parts: bytes) -> bytes:
    return encoder.begin() + b"".join([await encoder.add(part) for part in parts]) + await encoder.end()


async def test_parquet_has_types_and_tells_null_from_an_empty_text() -> None:
    parts = (
        b'"x,""y""\nz","{""k"": ""v""}",7,0.1,t,2026-03-03 12:00:00.000001+00\n',
        b"",
        b'"",,,,f,\n,"[]",-1,1e+300,,2026-03-03 12:00:00+00\n',
    )
    table = pq.read_table(io.BytesIO(await encoded(encoder_of("parquet", TYPES), *parts)))
    assert table.to_pylist() == [
        {"a": 'x,"y"\nz', "b": '{"k": "v"}', "c": 7, "d": 0.1, "e": True, "f": datetime(2026, 3, 3, 12, 0, 0, 1, UTC)},
        {"a": "", "b": None, "c": None, "d": None, "e": False, "f": None},
        {"a": None, "b": "[]", "c": -1, "d": 1e300, "e": None, "f": datetime(2026, 3, 3, 12, tzinfo=UTC)},
    ]
    assert [str(field.type) for field in table.schema] == [
        *("string", "string", "int32", "double", "bool", "timestamp[us, tz=UTC]")
    ]


async def test_parquet_without_rows_has_its_columns() -> None:
    table = pq.read_table(io.BytesIO(await encoded(encoder_of("parquet", COLUMNS))))
    assert (table.num_rows, table.schema.names) == (0, list(COLUMNS))


async def test_parquet_is_written_group_by_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_formats, "GROUP_BYTES", 2000)
    encoder = encoder_of("parquet", {"a": "text"})
    sizes, content = [], encoder.begin()
    for number in range(40):
        ready = await encoder.add(b"%d\n" % number * 10)
        sizes.append(len(ready))
        content += ready
    assert any(sizes)
    assert sizes.count(0) > 30
    file = pq.ParquetFile(io.BytesIO(content + await encoder.end()))
    assert (file.metadata.num_rows, file.num_row_groups) == (400, sum(map(bool, sizes)) + 1)


async def test_a_row_may_be_larger_than_any_block() -> None:
    large = b"x" * (3 << 20)
    table = pq.read_table(io.BytesIO(await encoded(encoder_of("parquet", {"a": "text"}), large + b"\ny\n")))
    assert [len(row["a"]) for row in table.to_pylist()] == [3 << 20, 1]


async def test_csv_has_a_header_and_ndjson_none() -> None:
    assert await encoded(encoder_of("csv", TYPES), b"1\n", b"", b"2\n") == b"a,b,c,d,e,f\n1\n2\n"
    assert await encoded(encoder_of("ndjson", TYPES), b"{}\n") == b"{}\n"


def test_pyarrow_is_imported_only_for_parquet() -> None:
    code = "import everyrun.query.app, sys; sys.exit('pyarrow' in sys.modules or 'obstore' in sys.modules)"
    done: Any = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 0
