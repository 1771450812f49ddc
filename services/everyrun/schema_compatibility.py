"""Find changes of an event's schema that would break a reader.

Readers are our own code, which must read old events, and consumers, which must read new events. The rules are in
docs/reference/compatibility.md. ``python -m everyrun.schema_compatibility`` stores a copy of each released schema, and
a test compares the present schemas with these copies.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Schema = Mapping[str, Any]

#: Keywords of JSON Schema that may differ, because they only describe.
_DESCRIPTIVE = {"$schema", "$id", "$defs", "title", "description", "examples", "default"}
#: Keywords that limit values. True: a greater limit allows fewer values, as with ``minimum``. False: it allows more.
_BOUNDS = {
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems"), True),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems"), False),
}


def breaks(released: Schema, present: Schema) -> list[str]:
    """Return the changes from the released to the present schema that would break a reader.

    Each change is described by a text that begins with the path of the field that changed.
    """
    return list(_compare(released, present, _Refs(released, present), ""))


class _Refs:
    def __init__(self, released: Schema, present: Schema) -> None:
        self._released, self._present = released.get("$defs", {}), present.get("$defs", {})

    def old(self, schema: Schema) -> Schema:
        """Return the schema. If it is a reference, return the schema to which it refers in the released document."""
        return self._follow(schema, self._released)

    def new(self, schema: Schema) -> Schema:
        """Return the schema. If it is a reference, return the schema to which it refers in the present document."""
        return self._follow(schema, self._present)

    @staticmethod
    def _follow(schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
        while "$ref" in schema:
            schema = definitions[schema["$ref"].rpartition("/")[2]]
        return schema


def _compare(released: Schema, present: Schema, refs: _Refs, path: str) -> Iterator[str]:
    old, new = refs.old(released), refs.new(present)
    where = path or "the event"
    yield from _types(old, new, where)
    yield from _values(old, new, where)
    for name, greater_is_narrower in _BOUNDS.items():
        yield from _bound(old.get(name), new.get(name), greater_is_narrower, f"{where}: {name}")
    yield from _fields(old, new, refs, path)
    for name in ("items", "additionalProperties"):
        if isinstance(old.get(name), Mapping) and isinstance(new.get(name), Mapping):
            yield from _compare(old[name], new[name], refs, f"{path}[]")
        elif old.get(name) not in (None, True, {}) and old.get(name) != new.get(name):
            yield f"{where}: {name} differs"
        elif new.get(name) not in (None, True, {}) and name == "additionalProperties" and not old.get(name):
            yield f"{where}: {name} restricts values that were allowed"
    yield from _variants(old, new, refs, path)
    known = _DESCRIPTIVE | set(_BOUNDS) | {"type", "enum", "const", "properties", "required", "items"}
    known |= {"additionalProperties", "anyOf", "prefixItems"}
    for name in sorted({*old, *new} - known):
        if old.get(name) != new.get(name):
            yield f"{where}: {name} differs"


def _types(old: Schema, new: Schema, where: str) -> Iterator[str]:
    before, after = _type_set(old), _type_set(new)
    for name in sorted(before - after):
        yield f"{where}: the type {name} is removed, and events in the log have it"
    for name in sorted(after - before):
        yield f"{where}: the type {name} is new, and consumers do not expect it"


def _type_set(schema: Schema) -> set[str]:
    kind = schema.get("type")
    return set(kind) if isinstance(kind, list) else {kind} if kind else set()


def _values(old: Schema, new: Schema, where: str) -> Iterator[str]:
    before, after = _value_set(old), _value_set(new)
    if before is None and after is None:
        return
    if before is None:
        yield f"{where}: only some values are allowed now, and events in the log may have others"
    elif after is None:
        yield f"{where}: any value is allowed now, and consumers expect only the former ones"
    else:
        for value in sorted(before - after):
            yield f"{where}: the value {value} is removed, and events in the log have it"
        for value in sorted(after - before):
            yield f"{where}: the value {value} is new, and consumers do not expect it"


def _value_set(schema: Schema) -> set[str] | None:
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    return None if values is None else {json.dumps(value) for value in values}


def _bound(old: float | None, new: float | None, greater_is_narrower: bool, what: str) -> Iterator[str]:
    if new is None or old == new:
        return
    if old is None or (new > old) == greater_is_narrower:
        yield f"{what} is narrowed from {old} to {new}"


def _fields(old: Schema, new: Schema, refs: _Refs, path: str) -> Iterator[str]:
    before, after = old.get("properties", {}), new.get("properties", {})
    required_before, required_after = set(old.get("required", ())), set(new.get("required", ()))
    for name, schema in before.items():
        field = f"{path}.{name}".lstrip(".")
        if name not in after:
            yield f"{field}: the field is removed"
            continue
        if name in required_before and name not in required_after:
            yield f"{field}: the field may be absent now, and consumers expect it"
        if name in required_after and name not in required_before:
            yield f"{field}: the field is required now, and events in the log lack it"
        yield from _compare(schema, after[name], refs, field)
    for name in after:
        if name not in before and name in required_after:
            yield f"{path}.{name}".lstrip(".") + ": a new field is required, and events in the log lack it"


def _variants(old: Schema, new: Schema, refs: _Refs, path: str) -> Iterator[str]:
    before, after = _branches(old), _branches(new)
    if not before and not after:
        return
    if len(before) != len(after):
        yield f"{path or 'the event'}: {len(before)} alternatives became {len(after)}"
        return
    for one, other in zip(before, after, strict=True):
        yield from _compare(one, other, refs, path)


def _branches(schema: Schema) -> list[Schema]:
    return [*schema.get("anyOf", ()), *schema.get("prefixItems", ())]


def release(schemas: Path, released: Path) -> list[str]:
    """Copy each schema whose version has no copy in ``released`` yet, and return the names of the new copies.

    A copy that exists is never overwritten, because events with that schema are in logs.
    """
    made = []
    for path in sorted(schemas.glob("*.json")):
        version = json.loads(path.read_text())["$id"].rpartition("/")[2]
        copy = released / version / path.name
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(path.read_text())
            made.append(f"{version}/{path.name}")
    return made


if __name__ == "__main__":
    top = Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd()
    for name in release(top / "schemas" / "events", top / "schemas" / "released"):
        print(f"schemas/released/{name}")
