"""Files as targets of a replay."""

from __future__ import annotations

from pathlib import Path

import pytest

from everyrun.replay.errors import TargetError
from everyrun.replay.export.targets import ToFile


async def test_the_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    first = ToFile(str(path))
    first._file.write(b"1\n")
    await first.deliver("runs", [])
    assert (first.size(), path.exists()) == (2, False)
    first.close()
    second = ToFile(str(path), 2)
    second._file.write(b"2\n")
    await second.deliver("runs", [])
    second.finish()
    second.close()
    assert path.read_bytes() == b"1\n2\n"
    # Killed after the rename, before the checkpoint was deleted: it finishes again.
    third = ToFile(str(path), 4)
    third.finish()
    third.close()
    assert path.read_bytes() == b"1\n2\n"
    with pytest.raises(TargetError, match="is shorter than the 5 bytes"):
        ToFile(str(path), 5)
