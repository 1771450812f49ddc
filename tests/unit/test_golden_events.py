"""The present code reads an event of every released version as the newest version.

``EVERYRUN_WRITE=1`` writes the files of new event types; existing files are never changed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pytest

from everyrun import schemas
from everyrun.log import events, upcast
from everyrun.log.cloudevents import LoggedEvent, event_type, record
from everyrun.projection.decode import InvalidRecordError, event_of, run_of
from tests.records import Logged

GOLDEN = Path(__file__).parents[1] / "golden" / "events"
KINDS = {str(kind.__struct_config__.tag): (topic, kind) for topic, kinds in events.TOPICS.items() for kind in kinds}  # type: ignore[attr-defined]
#: The value of a field by its name; for other fields the type decides.
_KNOWN: dict[str, Any] = {
    "run": msgspec.Raw(
        b'{"object":"workflow_run","id":"workflow_run_1","status":"FAILED","batchId":"batch_1",'
        b'"metadata":{"row":1},  "failureReason":"INTERNAL_ERROR","endTime":"2026-02-09T10:00:00.000Z",'
        b'"usage":{"credits":2.5},"stepRuns":[]}'
    ),
    "file": {"url": "https://files.example.com/1.pdf"},
    "metadata": {"customer": "c-1", "row": 1},
    "counts": {"FAILED": 1, "PROCESSED": 999},
    "headers": [("content-type", "application/json")],
    "raw": "eyJ4IjoxfQ==",
    "status": "FAILED",
    "content_hash": "0f" * 32,
    "where": {"customer.id": "7"},
}
_TIMES = ("_at", "deadline")


def _sample(name: str, hint: Any) -> Any:
    while get_origin(hint) is not None and hasattr(hint, "__metadata__"):
        hint = get_args(hint)[0]
    options = [option for option in get_args(hint) if option is not type(None)]
    if hint is msgspec.Raw and name != "run":
        return msgspec.Raw(msgspec.json.encode(_KNOWN[name]))
    if name in _KNOWN and not (name == "status" and hint is int):
        return _KNOWN[name]
    if str(get_origin(hint)) == "typing.Literal":
        return options[0]
    if get_origin(hint) is list:
        return [_sample(name.removesuffix("s"), options[0])]
    if options:
        return _sample(name, options[0])
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return _event(hint)
    if hint is str and name.endswith(_TIMES):
        return "2026-02-09T10:00:00.000Z"
    return {str: f"{name}_1", int: 1, float: 2.5, bool: True}[hint]


def _event(kind: type[msgspec.Struct]) -> msgspec.Struct:
    hints = get_type_hints(kind, include_extras=True)
    return kind(**{name: _sample(name, hint) for name, hint in hints.items()})


def _write(kind: str) -> None:
    topic, struct = KINDS[kind]
    path = GOLDEN / f"v{upcast.version(kind)}" / f"{kind}.json"
    if path.exists():
        return
    made = record(
        topic, _event(struct), key="key_1", id="id_1", source="/everyrun/test", time="2026-02-09T10:00:00.000Z"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "topic": topic,
        "key": made.key.decode(),
        "headers": {name: value.decode() for name, value in made.headers},
        "value": made.value.decode(),
    }
    path.write_text(json.dumps(document, indent=2) + "\n")


if os.environ.get("EVERYRUN_WRITE"):
    for _kind in KINDS:
        _write(_kind)

FILES = sorted(GOLDEN.glob("v*/*.json"))


def golden(path: Path) -> tuple[str, Logged]:
    document = json.loads(path.read_text())
    headers = [(name, value.encode()) for name, value in document["headers"].items()]
    topic = document["topic"]
    return topic, Logged(topic, 0, 0, document["key"].encode(), document["value"].encode(), headers, 1)


@pytest.mark.parametrize("path", FILES, ids=[f"{path.parent.name}/{path.stem}" for path in FILES])
def test_an_old_event_is_read_as_the_newest_version(path: Path) -> None:
    topic, logged = golden(path)
    _, struct = KINDS[path.stem]
    newest = GOLDEN / f"v{upcast.version(path.stem)}" / path.name
    event = msgspec.json.decode(upcast.upcast(logged.headers, logged.value or b""), type=struct)
    assert event_type(event) == path.stem
    expected = msgspec.json.decode(golden(newest)[1].value or b"", type=struct)
    assert msgspec.json.encode(event) == msgspec.json.encode(expected)
    if topic == "runs":
        assert run_of(logged).status == "FAILED"
    elif topic in ("batches", "deliveries", "quarantine"):
        assert isinstance(event_of(topic, logged), LoggedEvent)


def test_every_released_version_of_every_event_has_a_golden_file() -> None:
    released = {
        (int(path.parent.name), path.stem) for path in (GOLDEN.parents[2] / "schemas" / "released").glob("*/*.json")
    }
    assert released <= {(int(path.parent.name[1:]), path.stem) for path in FILES}, "EVERYRUN_WRITE=1 makes them"
    assert {kind for _, kind in released} <= set(schemas.event_schemas())


def test_every_step_to_the_newest_version_has_an_upcaster() -> None:
    for kind, newest in upcast.VERSIONS.items():
        assert kind in KINDS
        assert all((kind, number) in upcast.UPCASTERS for number in range(1, newest))


@pytest.fixture
def a_second_version(monkeypatch: pytest.MonkeyPatch):
    """Pretend that the next release renames a field of batch-returned and adds one to run-observed."""

    def renamed(fields: upcast.Fields) -> upcast.Fields:
        return {{"why": "reason"}.get(name, name): value for name, value in fields.items()}

    monkeypatch.setitem(upcast.VERSIONS, "batch-returned", 2)
    monkeypatch.setitem(upcast.UPCASTERS, ("batch-returned", 1), renamed)
    monkeypatch.setitem(upcast.VERSIONS, "run-observed", 2)
    monkeypatch.setitem(
        upcast.UPCASTERS, ("run-observed", 1), lambda fields: {**fields, "event_type": msgspec.Raw(b'"old"')}
    )
    upcast._steps.cache_clear()
    yield
    upcast._steps.cache_clear()


@pytest.mark.usefixtures("a_second_version")
def test_an_old_event_is_upgraded_when_it_is_decoded() -> None:
    topic, logged = golden(GOLDEN / "v1" / "batch-returned.json")
    old = msgspec.json.decode(logged.value or b"")
    old["why"] = old.pop("reason")
    fact = event_of(topic, logged._replace(value=msgspec.json.encode(old)))
    assert fact.event.reason == "reason_1"  # type: ignore[attr-defined]


@pytest.mark.usefixtures("a_second_version")
def test_a_run_of_extend_stays_byte_for_byte() -> None:
    _, logged = golden(GOLDEN / "v1" / "run-observed.json")
    lifted = msgspec.json.decode(upcast.upcast(logged.headers, logged.value or b""), type=events.RunObserved)
    assert lifted.event_type == "old"
    assert bytes(lifted.run) == bytes(_KNOWN["run"])
    assert run_of(logged).order


@pytest.mark.usefixtures("a_second_version")
def test_a_new_event_carries_its_version() -> None:
    made = record(
        "batches", _event(events.BatchReturned), key="k", id="i", source="/x", time="2026-02-09T10:00:00.000Z"
    )
    assert dict(made.headers)["ce_dataschema"].endswith(b"/batch-returned/2")


def test_an_event_of_a_newer_version_is_refused() -> None:
    topic, logged = golden(GOLDEN / "v1" / "batch-returned.json")
    headers = [
        (name, value.replace(b"/1", b"/9") if name == "ce_dataschema" else value) for name, value in logged.headers
    ]
    with pytest.raises(InvalidRecordError, match="knows up to 1: update it"):
        event_of(topic, logged._replace(headers=headers))
