"""Committed schemas and pages equal the generated ones, and events match their schemas."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary
from cloudevents.core.formats.json import JSONFormat

from everyrun import schemas
from everyrun.log.cloudevents import header
from tests.records import a_world

TOP = Path(__file__).parents[2]
APIS = ("submission", "query", "replay")


def operations(name: str) -> list[tuple[str, str, dict[str, Any]]]:
    paths = schemas.openapis()[name]["paths"]
    return [(method, path, operation) for path, methods in paths.items() for method, operation in methods.items()]


@pytest.mark.parametrize("name", sorted(schemas.documents()))
def test_committed_files_are_up_to_date(name: str) -> None:
    assert (TOP / name).read_text() == schemas.documents()[name], "run: make schemas"


def test_no_stale_file_in_schemas() -> None:
    there = {p.relative_to(TOP).as_posix() for p in (TOP / "schemas").rglob("*") if p.is_file()}
    # Released schemas stay unchanged; test_schema_compatibility.py compares the present ones with them.
    there = {name for name in there if not name.startswith("schemas/released/")}
    assert there == {name for name in schemas.documents() if name.startswith("schemas/")}


def test_events_match_their_schemas_and_are_cloudevents() -> None:
    found = schemas.event_schemas()
    for record in a_world(random.Random(1)):
        tag = header(record.headers, "ce_type")
        jsonschema.validate(json.loads(record.value), found[tag])
        message = KafkaMessage(headers=dict(record.headers), key=record.key, value=record.value)
        event = from_binary(message, JSONFormat())
        assert event.get_type() == tag
        assert event.get_id()


def test_every_field_of_every_event_is_described() -> None:
    without = [
        (tag, name)
        for tag, schema in schemas.event_schemas().items()
        for part in (schema, *schema.get("$defs", {}).values())
        for name, field in part["properties"].items()
        if not field.get("description") and name != "type"
    ]
    assert without == []


@pytest.mark.parametrize("name", APIS)
def test_every_route_declares_its_answer_and_its_errors(name: str) -> None:
    for method, path, operation in operations(name):
        where = f"{method} {path}"
        answers = operation["responses"]
        success = [status for status in answers if status.startswith("2")]
        assert len(success) == 1, where
        for status, answer in answers.items():
            if status == "304":
                assert "content" not in answer, where
                continue
            if status in success and "application/json" not in answer["content"]:
                # A stream, for example of CSV.
                assert all(kind["schema"]["type"] == "string" for kind in answer["content"].values()), where
                continue
            schema = answer["content"]["application/json"]["schema"]
            # A named type, not just "object".
            assert "$ref" in schema or "anyOf" in schema, (where, status)
        always = {"401", "403", "503", "504"}
        parameters = {"422"} if operation.get("parameters") or "requestBody" in operation else set()
        body = {"400", "413"} if "requestBody" in operation else set()
        assert always | parameters | body <= set(answers), where
        # An id in a path may not exist; a new job names no id that could be missing.
        if "{" in path:
            assert "404" in answers, where
        for status, answer in answers.items():
            if status >= "400":
                assert re.match(r"[A-Z_]+(, [A-Z_]+)*:", answer["description"]), (where, status)
    document = schemas.openapis()[name]
    assert "HTTPValidationError" not in document["components"]["schemas"]


@pytest.mark.parametrize("name", sorted(schemas.openapis()))
def test_every_reference_in_an_api_document_resolves(name: str) -> None:
    document = schemas.openapis()[name]
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert named <= set(document.get("components", {}).get("schemas", {}))


def test_errors_of_every_api_have_one_form() -> None:
    for name in (*APIS, "bridge"):
        problem = schemas.openapis()[name]["components"]["schemas"]["Problem"]
        assert problem["required"] == ["code", "message"]
        assert all(field["description"] for field in problem["properties"].values())
