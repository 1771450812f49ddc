"""Write records to Parquet files and read them back.

Import this module only in functions that write or read a file: pyarrow takes 35 MB of memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from everyrun.replay.archive.manifest import SHORT

_HEADERS = pa.list_(pa.struct([pa.field("name", pa.string(), nullable=False), pa.field("value", pa.binary())]))

#: The columns of a file of records. Topic and day are in the file's path, as Hive partitions.
RECORDS = pa.schema(
    [
        pa.field("key", pa.binary()),
        pa.field("headers", _HEADERS),
        pa.field("value", pa.binary()),
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("timestamp", pa.timestamp("ms", "UTC"), nullable=False),
        pa.field("timestamp_type", pa.int8(), nullable=False),
    ]
)

#: The columns of a file of digests: each record's partition and offset, and the first bytes of its digest.
DIGESTS = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("digest", pa.binary(SHORT), nullable=False),
    ]
)
_DELTA_ENCODED = {"partition": "DELTA_BINARY_PACKED", "offset": "DELTA_BINARY_PACKED"}


class ArchivedRecord(NamedTuple):
    """A record from an archive, with the attributes of an aiokafka record; ``topic`` is the short name."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp: int
    timestamp_type: int


def records_table(records: Sequence[Any]) -> pa.Table:
    """Return records as a table with the columns RECORDS."""
    headers = [header for record in records for header in record.headers]
    starts = list(accumulate((len(record.headers) for record in records), initial=0))
    pairs = pa.StructArray.from_arrays(
        [pa.array([name for name, _ in headers], pa.string()), pa.array([value for _, value in headers], pa.binary())],
        fields=list(_HEADERS.value_type),
    )
    return pa.Table.from_arrays(
        [
            pa.array([record.key for record in records], pa.binary()),
            pa.ListArray.from_arrays(pa.array(starts, pa.int32()), pairs),
            pa.array([record.value for record in records], pa.binary()),
            pa.array([record.partition for record in records], pa.int32()),
            pa.array([record.offset for record in records], pa.int64()),
            pa.array([record.timestamp for record in records], pa.int64()).cast(pa.timestamp("ms", "UTC")),
            pa.array([record.timestamp_type for record in records], pa.int8()),
        ],
        schema=RECORDS,
    )


def digests_table(records: Sequence[Any], digests: Sequence[bytes]) -> pa.Table:
    """Return the digests of records as a table with the columns DIGESTS."""
    return pa.Table.from_arrays(
        [
            pa.array([record.partition for record in records], pa.int32()),
            pa.array([record.offset for record in records], pa.int64()),
            pa.array([digest[:SHORT] for digest in digests], pa.binary(SHORT)),
        ],
        schema=DIGESTS,
    )


def records_writer(file: IO[bytes]) -> pq.ParquetWriter:
    """Return a writer for tables of records. It compresses with zstd."""
    return pq.ParquetWriter(
        file,
        RECORDS,
        compression="zstd",
        compression_level=1,
        use_dictionary=["headers.list.element.name", "headers.list.element.value", "key"],
        column_encoding={**_DELTA_ENCODED, "timestamp": "DELTA_BINARY_PACKED"},
        write_statistics=["partition", "offset", "timestamp"],
    )


def digests_writer(file: IO[bytes]) -> pq.ParquetWriter:
    """Return a writer for tables of digests. It compresses with zstd."""
    return pq.ParquetWriter(file, DIGESTS, compression="zstd", use_dictionary=False, column_encoding=_DELTA_ENCODED)


def read_records(topic: str, file: IO[bytes], size: int = 5000) -> Iterator[list[ArchivedRecord]]:
    """Yield the records of a file in order, ``size`` at a time.

    Raises pyarrow.ArrowException or OSError if the file is damaged.
    """
    for batch in pq.ParquetFile(file).iter_batches(size):
        columns = {name: batch.column(name) for name in RECORDS.names}
        headers = columns["headers"]
        starts = headers.offsets.to_pylist()
        pairs = headers.values
        flat = list(zip(pairs.field("name").to_pylist(), pairs.field("value").to_pylist(), strict=True))
        rows = zip(
            columns["partition"].to_pylist(),
            columns["offset"].to_pylist(),
            columns["key"].to_pylist(),
            columns["value"].to_pylist(),
            pairwise(starts),
            columns["timestamp"].cast(pa.int64()).to_pylist(),
            columns["timestamp_type"].to_pylist(),
            strict=True,
        )
        yield [
            ArchivedRecord(topic, partition, offset, key, value, tuple(flat[first:end]), timestamp, kind)
            for partition, offset, key, value, (first, end), timestamp, kind in rows
        ]


def read_digests(file: IO[bytes]) -> list[tuple[tuple[int, int], bytes]]:
    """Return the digests of a file in order: ((partition, offset), first bytes of the digest)."""
    table = pq.read_table(file)
    offsets = zip(table.column("partition").to_pylist(), table.column("offset").to_pylist(), strict=True)
    return list(zip(offsets, table.column("digest").to_pylist(), strict=True))
