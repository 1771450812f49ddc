"""schemas/ and the generated pages are what the code's own types make, and the events are as they say."""

from __future__ import annotations

import json
import random
from pathlib import Path

import jsonschema
import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary
from cloudevents.core.formats.json import JSONFormat

from everyrun import schemas
from everyrun.log.cloudevents import header
from tests.records import a_world

TOP = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(schemas.documents()))
def test_what_is_committed_is_what_is_made(name: str) -> None:
    assert (TOP / name).read_text() == schemas.documents()[name], "run: make schemas"


def test_no_file_of_schemas_is_left_over() -> None:
    there = {p.relative_to(TOP).as_posix() for p in (TOP / "schemas").rglob("*") if p.is_file()}
    # Those that were released stay as they are; test_compatibility.py holds the present ones against them.
    there = {name for name in there if not name.startswith("schemas/released/")}
    assert there == {name for name in schemas.documents() if name.startswith("schemas/")}


def test_events_are_valid_by_their_schemas_and_are_cloudevents() -> None:
    found = schemas.event_schemas()
    for record in a_world(random.Random(1)):
        tag = header(record.headers, "ce_type")
        jsonschema.validate(json.loads(record.value), found[tag])
        message = KafkaMessage(headers=dict(record.headers), key=record.key, value=record.value)
        event = from_binary(message, JSONFormat())
        assert event.get_type() == tag
        assert event.get_id()
