"""Changes of a schema that would break consumers, or events in the log, are refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from everyrun import schema_compatibility, schemas
from everyrun.log.upcast import version
from everyrun.schema_compatibility import breaks

TOP = Path(__file__).parents[2]
RELEASED = TOP / "schemas" / "released"
FILES = sorted(RELEASED.glob("*/*.json"))


@pytest.mark.parametrize("path", FILES, ids=[f"{path.parent.name}/{path.stem}" for path in FILES])
def test_released_schemas_stay_compatible(path: Path) -> None:
    kind, number = path.stem, int(path.parent.name)
    assert kind in schemas.event_schemas(), f"{kind} was released: consumers and the log have it"
    if number < version(kind):
        return
    broken = breaks(json.loads(path.read_text()), schemas.event_schemas()[kind])
    assert broken == [], (
        "a new version and an upcaster are needed, see docs/reference/compatibility.md. (Before Everyrun 0.1.0 is "
        "released: take this event's files in schemas/released and tests/golden away, and make release-schemas.)"
    )


def test_every_version_below_a_released_one_is_released() -> None:
    for path in FILES:
        for number in range(1, int(path.parent.name)):
            assert (RELEASED / str(number) / path.name).exists()


RESULT = schemas.event_schemas()["result-settled"]
BATCH = schemas.event_schemas()["batch-submitted"]
RUN = schemas.event_schemas()["run-observed"]


def changed(schema: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    new = copy.deepcopy(schema)
    change(new)
    return new


def _removed(s: dict[str, Any]) -> None:
    del s["properties"]["status"]
    s["required"].remove("status")


def _new_required(s: dict[str, Any]) -> None:
    s["properties"]["colour"] = {"type": "string"}
    s["required"].append("colour")


BREAKING: list[tuple[dict[str, Any], Callable[[dict[str, Any]], object], str]] = [
    (RESULT, _removed, "status: the field is removed"),
    (RESULT, _new_required, "colour: a new field is required"),
    (RESULT, lambda s: s["required"].remove("status"), "status: the field may be absent now"),
    (RUN, lambda s: s["required"].append("truncated"), "truncated: the field is required now"),
    (RESULT, lambda s: s["properties"]["position"].update(type="string"), "position: the type integer is removed"),
    (BATCH, lambda s: s["properties"]["attempt"].update(minimum=2), "attempt: minimum is narrowed from 1 to 2"),
    (RUN, lambda s: s["properties"]["source"]["enum"].append("guess"), 'source: the value "guess" is new'),
    (RUN, lambda s: s["properties"]["source"]["enum"].remove("poll"), 'source: the value "poll" is removed'),
    (BATCH, lambda s: s["$defs"]["Input"]["properties"].pop("file"), "inputs[].file: the field is removed"),
    (RESULT, lambda s: s["properties"]["status"].update(pattern="^[A-Z]+$"), "status: pattern differs"),
    (RESULT, lambda s: s["properties"]["run_id"]["anyOf"].pop(), "run_id: 2 alternatives became 1"),
    (RESULT, lambda s: s["properties"]["status"].update(enum=["PROCESSED"]), "status: only some values are allowed"),
]


@pytest.mark.parametrize(("schema", "change", "said"), BREAKING, ids=[said for _, _, said in BREAKING])
def test_breaking_change_is_named(
    schema: dict[str, Any], change: Callable[[dict[str, Any]], object], said: str
) -> None:
    found = breaks(schema, changed(schema, change))
    assert any(line.startswith(said) for line in found), found


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["properties"].update(colour={"type": "string", "default": "red"}),
        lambda s: s["properties"]["status"].update(description="Other words."),
        lambda s: s.update(description="Other words.", title="Another"),
    ],
)
def test_a_compatible_change_is_allowed(change: Callable[[dict[str, Any]], object]) -> None:
    assert breaks(RESULT, changed(RESULT, change)) == []


def test_a_released_schema_is_not_overwritten(tmp_path: Path) -> None:
    now = tmp_path / "events"
    now.mkdir()
    (now / "a.json").write_text('{"$id": "x/a/1", "type": "object"}')
    assert schema_compatibility.release(now, tmp_path / "released") == ["1/a.json"]
    (now / "a.json").write_text('{"$id": "x/a/1", "type": "array"}')
    assert schema_compatibility.release(now, tmp_path / "released") == []
    assert "object" in (tmp_path / "released" / "1" / "a.json").read_text()
