"""Kafka's jars: whole or not at all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import jgo.env
import pytest

from everyrun.embedded.jars import KAFKA, cache_folder, classpath
from everyrun.embedded.process import PlatformError


def test_the_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(tmp_path / "fallback") == tmp_path / ".cache" / "everyrun"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder(tmp_path / "fallback") == tmp_path / "xdg" / "everyrun"


@pytest.mark.parametrize("home", ["", "/proc/nowhere"])
def test_without_a_home_the_data_folder_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", home)
    assert cache_folder(tmp_path / "fallback") == tmp_path / "fallback"


def _builder(monkeypatch: pytest.MonkeyPatch, build: object) -> None:
    class Builder:
        def __init__(self, context: object, cache_dir: Path) -> None:
            self.folder = cache_dir

        def from_endpoint(self, coordinates: str) -> object:
            return build(self.folder)  # type: ignore[operator]

    monkeypatch.setattr(jgo.env, "EnvironmentBuilder", Builder)


def test_they_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def build(folder: Path) -> object:
        fetched.append(folder)
        (folder / "jars").mkdir(parents=True)
        (folder / "jars" / "kafka.jar").write_text("whole")
        return SimpleNamespace(path=folder)

    _builder(monkeypatch, build)
    first, second = classpath(tmp_path), classpath(tmp_path)
    assert first == second == f"{tmp_path}/kafka-{KAFKA}/modules/*:{tmp_path}/kafka-{KAFKA}/jars/*"
    assert len(fetched) == 1
    assert (tmp_path / f"kafka-{KAFKA}" / "jars" / "kafka.jar").read_text() == "whole"


def test_an_interrupted_fetch_leaves_nothing_that_a_later_one_takes_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(folder: Path) -> object:
        folder.mkdir(parents=True)
        (folder / "kafka.jar").write_text("ha")
        raise ConnectionError("the network is away")

    _builder(monkeypatch, build)
    with pytest.raises(PlatformError, match=r"the network is away.*EVERYRUN_KAFKA_BOOTSTRAP"):
        classpath(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    # Killed in the middle: what it had begun is not built upon.
    (tmp_path / "fetching" / "built").mkdir(parents=True)
    (tmp_path / "fetching" / "built" / "half.jar").touch()

    def build_whole(folder: Path) -> object:
        assert not (folder / "half.jar").exists()
        folder.mkdir(parents=True)
        return SimpleNamespace(path=folder)

    _builder(monkeypatch, build_whole)
    classpath(tmp_path)
    assert (tmp_path / f"kafka-{KAFKA}").is_dir()
