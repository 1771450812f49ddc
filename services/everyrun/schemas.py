"""Write ``schemas/`` and the generated pages of ``docs/reference/`` from the code's types.

Run it with ``python -m everyrun.schemas``. A test compares the committed files with what this makes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import msgspec
import yaml

from everyrun import __version__
from everyrun.log import events
from everyrun.log.topics import declared
from everyrun.log.upcast import dataschema
from everyrun.openapi import REF, Problem
from everyrun.query.api import query_api
from everyrun.reference_pages import cli_page, ownership_page, settings_page
from everyrun.replay.api import replay_api
from everyrun.settings import load
from everyrun.submission.api.submissions import submission_api

_KEYS = {
    "batches": "chunk (for a part of a cut chunk, the chunk that was cut first); for a registered batch the batchId; "
    "for an event about no chunk the submission, workflow or token id",
    "runs": "chunk that the reserved metadata key names; without one the batchId; without either the run id",
    "deliveries": "run id",
    "results": "input id",
    "reports": "batchId, chunk or submission id",
    "quarantine": "source position of the message",
    "probes": "host of the doctor",
}


def event_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of the value of each event, by event type."""
    found = {}
    for kind in sorted({k for kinds in events.TOPICS.values() for k in kinds}, key=lambda k: k.__name__):
        tag = str(cast(Any, kind).__struct_config__.tag)
        (schema,), components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
        own = components.pop(kind.__name__, schema)
        own = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": dataschema(tag), **own}
        own["description"] = " ".join((kind.__doc__ or "").split())
        if components:
            own["$defs"] = components
        found[tag] = own
    return found


def asyncapi() -> dict[str, Any]:
    """Describe the topics, their keys, retention and messages, as AsyncAPI 3."""
    channels, messages, operations = {}, {}, {}
    attributes = {f"ce_{name}": {"type": "string"} for name in _ATTRIBUTES}
    for topic in declared():
        kinds = events.TOPICS[topic.name]
        tags = [str(cast(Any, kind).__struct_config__.tag) for kind in kinds]
        for tag in tags:
            messages[tag] = {
                "name": tag,
                "contentType": "application/json",
                "headers": {"type": "object", "properties": attributes},
                "payload": {"$ref": f"events/{tag}.json"},
            }
        channels[topic.name] = {
            "address": f"everyrun.{topic.name}",
            "description": f"Key: {_KEYS[topic.name]}. Partitions: {topic.partitions}.",
            "bindings": {"kafka": {"partitions": topic.partitions, "topicConfiguration": topic.config}},
            "messages": {tag: {"$ref": f"#/components/messages/{tag}"} for tag in tags},
        }
        operations[f"{topic.name}-written"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{topic.name}"},
            "summary": "; ".join(" ".join((kind.__doc__ or "").split()) for kind in kinds),
        }
    info = {
        "title": "Everyrun",
        "version": __version__,
        "description": "CloudEvents 1.0 in Kafka's binary mode: attributes as ce_ headers, JSON as the value.",
    }
    parts = {"channels": channels, "operations": operations, "components": {"messages": messages}}
    return {"asyncapi": "3.0.0", "info": info, "defaultContentType": "application/json", **parts}


_ATTRIBUTES = ("specversion", "id", "type", "source", "subject", "time", "dataschema", "signedtime")


def openapis() -> dict[str, dict[str, Any]]:
    """Return the OpenAPI document of each HTTP service."""
    nothing = cast(Any, None)
    settings = load()
    return {
        "submission": submission_api(settings, nothing, nothing, nothing, nothing, nothing).openapi(),
        "query": query_api(settings, nothing).openapi(),
        "replay": replay_api(settings, nothing, nothing).openapi(),
        "bridge": _bridge(),
        **{name: _health(name) for name in ("processor", "reconciler")},
    }


_HEALTH = {
    "type": "object",
    "required": ["status"],
    "properties": {
        "status": {"enum": ["ok", "ready", "not ready", "failed"]},
        "reason": {"type": "string", "description": "Why the process cannot continue, if it failed."},
        "waiting": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "Each part that does not work, needed or not, and why.",
        },
        "missing": {"type": "array", "items": {"type": "string"}, "description": "Those that are needed."},
    },
}


def _answer(description: str, schema: str, kind: str = "application/json") -> dict[str, Any]:
    about = {"$ref": f"#/components/schemas/{schema}"} if schema else {"type": "string"}
    return {"description": description, "content": {kind: {"schema": about}}}


def _health(name: str) -> dict[str, Any]:
    working, not_working = _answer("Yes.", "Health"), _answer("No: `waiting` says why.", "Health")
    live = {"summary": "Check that the process is alive", "responses": {"200": working, "503": not_working}}
    ready = {
        "summary": "Check that the service is ready",
        "responses": {"200": working, "503": not_working},
    }
    metrics = {
        "summary": "Return metrics for Prometheus",
        "responses": {"200": _answer("Metrics in Prometheus' text format.", "", "text/plain")},
    }
    paths = {"/healthz": {"get": live}, "/readyz": {"get": ready}, "/metrics": {"get": metrics}}
    components = {"schemas": {"Health": _HEALTH}}
    info = {"title": f"Everyrun {name}", "version": "1"}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components}


def _bridge() -> dict[str, Any]:
    document = _health("bridge")
    names = ("x-extend-request-timestamp", "x-extend-request-signature")
    hook = {
        "summary": "Accept a webhook of Extend: 200 once it is in the log",
        "parameters": [
            {"name": name, "in": "header", "required": True, "schema": {"type": "string"}} for name in names
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
        "responses": {
            "200": _answer("It is in the log, or it was dropped because nothing needs it.", "Taken"),
            "400": _answer("INCOMPLETE: the body was cut short.", "Problem"),
            "401": _answer("UNAUTHORIZED: the signature or the timestamp is missing, wrong or stale.", "Problem"),
            "405": _answer("METHOD_NOT_ALLOWED: POST only.", "Problem"),
            "413": _answer("TOO_LARGE: the body is larger than EVERYRUN_WEBHOOK_MAX_BYTES.", "Problem"),
            "503": _answer("UNAVAILABLE: not accepted; Extend retries it.", "Problem"),
        },
    }
    document["components"]["schemas"] |= msgspec.json.schema_components([Problem], ref_template=REF)[1]
    document["components"]["schemas"]["Taken"] = {
        "type": "object",
        "required": ["status"],
        "properties": {"status": {"enum": ["ok", "self-test"]}},
    }
    document["paths"] = {"/webhooks/extend": {"post": hook}, **document["paths"]}
    return document


def documents() -> dict[str, str]:
    """Return every generated file that needs no database, as text by its path in the repository."""
    files = {f"schemas/events/{tag}.json": _json(schema) for tag, schema in event_schemas().items()}
    files |= {f"schemas/openapi/{name}.json": _json(document) for name, document in openapis().items()}
    files["schemas/asyncapi.yaml"] = yaml.safe_dump(asyncapi(), sort_keys=False, width=120)
    files["docs/reference/settings.md"] = settings_page()
    files["docs/reference/cli.md"] = cli_page()
    files["docs/reference/ownership.md"] = ownership_page()
    return files


def _json(document: Any) -> str:
    return json.dumps(document, indent=2, sort_keys=False) + "\n"


def main(folder: Path) -> None:
    """Write every file that needs no database. A test that has one writes the page of tables (see CONTRIBUTING)."""
    for name, text in documents().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd())
