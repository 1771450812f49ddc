"""Files are written whole or not at all, in UTF-8, and nothing is left beside them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from everyrun.atomic_file import whole, write_bytes, write_text

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")


def test_after_an_error_the_file_is_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("before")

    def fail_halfway() -> None:
        with whole(path) as file:
            file.write("half")
            file.flush()
            assert path.read_text() == "before"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert path.read_text() == "before"
    with whole(path) as file:
        file.write("after")
    assert path.read_text() == "after"
    assert [one.name for one in tmp_path.iterdir()] == ["results.csv"]


def test_permissions_links_and_pipes_stay(tmp_path: Path) -> None:
    path, link = tmp_path / "real", tmp_path / "link"
    write_text(path, "a", mode=0o640)
    link.symlink_to(path)
    write_text(link, "b")
    assert (path.read_text(), link.is_symlink(), stat.S_IMODE(path.stat().st_mode)) == ("b", True, 0o640)
    umask = os.umask(0o027)
    try:
        write_text(tmp_path / "new", "")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    write_text(Path("/dev/null"), "nothing")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_new_file_replaces_none(tmp_path: Path) -> None:
    write_bytes(tmp_path / "key", b"1", mode=0o600, new=True)
    with pytest.raises(FileExistsError):
        write_bytes(tmp_path / "key", b"2", new=True)
    assert (tmp_path / "key").read_bytes() == b"1"


def test_the_error_names_what_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_text(tmp_path / "no" / "such.csv", "")
    assert caught.value.filename == str(tmp_path / "no" / "such.csv")
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path, "")


def test_text_is_utf8_in_every_locale(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from everyrun.atomic_file import write_text; "
    code += "write_text(Path(sys.argv[1]), 'M\\xfcller \\u4f60 \\ud83d\\n')"
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], env=env, check=True)
    assert (tmp_path / "out").read_bytes() == "Müller 你 \\ud83d\n".encode()
