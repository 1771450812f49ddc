"""A rebuild from an archive and the rest of the log equals a rebuild from the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from everyrun.replay.archive.reader import ArchiveAndLog
from everyrun.replay.archive.writer import archive
from everyrun.replay.errors import ArchiveError
from everyrun.settings import Settings
from tests.integration.test_rebuild import contents, rebuilt, write


async def test_a_rebuild_from_archive_and_log_equals_one_from_the_log(settings: Settings, tmp_path: Path) -> None:
    place = str(tmp_path / "archive")
    await write(settings, 1, 2)
    archived = await archive(settings, place)
    await write(settings, 3)
    by_log = await rebuilt(settings, schema="by_log")
    source = await ArchiveAndLog.open(place, settings)
    by_archive = await rebuilt(settings, schema="by_archive", source=source)
    assert by_archive.offsets == by_log.offsets
    assert by_archive.applied == by_log.applied > archived.records
    assert await contents(settings, "by_archive") == await contents(settings, "by_log")
    # The archive was really read: with damaged files the rebuild fails.
    for path in (tmp_path / "archive" / "records").rglob("*.parquet"):
        path.write_bytes(b"x")
    with pytest.raises(ArchiveError, match="was changed"):
        await rebuilt(settings, schema="by_nothing", source=source)
