"""Key files for signatures of archives."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from everyrun.replay.archive.signing import make_keys


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_make_keys_writes_both_files_or_none(tmp_path: Path) -> None:
    (tmp_path / "k.pub").write_text("the key of another pair")
    with pytest.raises(FileExistsError):
        make_keys(tmp_path / "k")
    assert not (tmp_path / "k").exists()
    assert make_keys(tmp_path / "j") == tmp_path / "j.pub"
    assert stat.S_IMODE((tmp_path / "j").stat().st_mode) == 0o600
