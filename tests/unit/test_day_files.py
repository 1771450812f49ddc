"""Files of an archive by topic and day."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from everyrun.log.reading import RecordRange
from everyrun.replay.archive import day_files
from everyrun.replay.archive.day_files import DayFile, TopicFiles, by_days, day_of

_DAY = 86_400_000


def a_record(offset: int, day: int) -> Any:
    return SimpleNamespace(
        partition=0, offset=offset, timestamp=day * _DAY + 1, timestamp_type=1, key=b"k", value=b"v", headers=()
    )


def test_records_are_split_where_the_day_changes() -> None:
    records = [a_record(offset, day) for offset, day in enumerate((0, 0, 1, 0))]
    parts = [(day, [record.offset for record in part]) for day, part in by_days(records)]
    assert parts == [("1970-01-01", [0, 1]), ("1970-01-02", [2]), ("1970-01-01", [3])]
    assert day_of(_DAY - 1) == "1970-01-01"


async def closed_files(folder: Path, *ranges: list[int]) -> list[tuple[str, int, int]]:
    """Add ranges of records of the given days, and return day, first offset and end of each file in order."""
    closed: list[tuple[str, int, int]] = []

    async def on_closed(file: DayFile) -> None:
        covered = file.covered[0]
        closed.append((file.day, covered.first, covered.end))
        file.remove()

    files = TopicFiles("runs", folder, on_closed)
    first = 0
    for days in ranges:
        records = [a_record(first + index, day) for index, day in enumerate(days)]
        await files.add(RecordRange("runs", 0, records, first + len(days)), first)
        first += len(days)
    await files.close()
    return closed


async def test_files_are_closed_without_gaps_in_the_offsets(tmp_path: Path) -> None:
    assert await closed_files(tmp_path, [0, 0, 1], [1, 2]) == [
        ("1970-01-01", 0, 2),
        ("1970-01-02", 2, 4),
        ("1970-01-03", 4, 5),
    ]
    assert list(tmp_path.iterdir()) == []


async def test_a_clock_that_was_set_back_leaves_no_gap(tmp_path: Path) -> None:
    assert await closed_files(tmp_path, [1, 1], [0]) == [("1970-01-02", 0, 2), ("1970-01-01", 2, 3)]


async def test_a_full_file_is_closed_after_those_of_earlier_days(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(day_files, "FILE_RECORDS", 2)
    monkeypatch.setattr(day_files, "GROUP_RECORDS", 1)
    assert await closed_files(tmp_path, [0], [1, 1], [1]) == [
        ("1970-01-01", 0, 1),
        ("1970-01-02", 1, 3),
        ("1970-01-02", 3, 4),
    ]
