"""Find what is new, changed, still changing or gone in a source."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from everyrun.cli.looks import Changes, Item, Look, compare, look, name_of, version_of
from everyrun.cli.manifest import ManifestError


def seen(**versions: str) -> Look:
    nothing: Any = None
    return Look({name: Item(version, nothing) for name, version in versions.items()}, {})


def test_a_file_is_taken_only_if_it_is_the_same_in_two_looks() -> None:
    before = seen(old="1", stable="1", edited="1", growing="1", moved="1")
    now = seen(old="1", stable="1", edited="2", growing="2", appeared="1")
    submitted = {"old": "1", "edited": "1", "moved": "1"}
    assert compare(before, now, submitted) == Changes(
        new=["stable"], changed=[], unstable=["appeared", "edited", "growing"], gone=["moved"], known=1
    )
    assert compare(now, now, submitted) == Changes(
        new=["appeared", "growing", "stable"], changed=["edited"], unstable=[], gone=["moved"], known=1
    )


def test_a_file_that_gets_an_earlier_content_again_is_changed() -> None:
    now = seen(a="1")
    assert compare(now, now, {"a": "2"}).changed == ["a"]
    assert compare(now, now, {"a": "1"}).changed == []


def test_the_version_of_a_file_is_its_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(b"%PDF-1")
    (tmp_path / "empty.pdf").touch()
    first = look(str(tmp_path), False, (), ())
    assert list(first.items) == ["a.pdf"]
    assert first.skipped == {"cannot be read (--skip-unreadable)": ["empty.pdf (the file is empty)"]}
    os.utime(path, ns=(1, 1))
    assert look(str(tmp_path), False, (), ()).items["a.pdf"].version == "6 bytes, 1 ns" != first.items["a.pdf"].version
    path.unlink()
    gone: Any = first.items["a.pdf"].item
    assert version_of(gone) is None
    with pytest.raises(ManifestError, match="there is no folder"):
        look(str(tmp_path / "none"), False, (), ())


def test_a_source_has_one_name_however_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    names = {name_of(str(path), False) for path in (tmp_path / "in", tmp_path / "in" / ".." / "in", tmp_path / "link")}
    (name,) = names
    assert name.startswith("file://")
    assert name.endswith(str((tmp_path / "in").resolve()))
    assert name_of("s3://invoices/in/", True) == name_of("s3://invoices/in", True) == "s3://invoices/in"
    assert name_of("s3://invoices/", True) == name_of("s3://invoices", True) == "s3://invoices"
