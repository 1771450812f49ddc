"""Write ``schemas/`` and the generated pages of ``docs/reference/`` from the code's types.

Run this module with ``python -m everyrun.schemas``. A test fails if the committed files differ from what it writes.
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
from everyrun.notifier.api import notifier_api
from everyrun.openapi import REF, Problem
from everyrun.query.api import query_api
from everyrun.reference_pages import cli_page, ownership_page, settings_page
from everyrun.replay.api import replay_api
from everyrun.settings import load
from everyrun.submission.api.submissions import submission_api

_KEYS = {
    "batches": "the chunk (for a part of a cut chunk, the chunk that was cut first); for a registered batch the "
    "batchId; for an event that is not about a chunk the id of the submission, workflow or token",
    "runs": "the chunk that the reserved metadata key names; if the run has no such key, the batchId; if it has no "
    "batchId either, the run id",
    "deliveries": "the run id",
    "results": "the input id",
    "reports": "the batchId, chunk or submission id",
    "quarantine": "the source of the message: its topic, partition and offset",
    "probes": "the name of the host on which the doctor runs",
}


def event_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema for the values of each type of event, by the name of the type."""
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
    """Return an AsyncAPI 3 document about the topics: their keys, retention and messages."""
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
        "notifier": notifier_api(settings, nothing, nothing, nothing).openapi(),
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
            "description": "Each part that does not work, whether it is needed or not, with the reason.",
        },
        "missing": {
            "type": "array",
            "items": {"type": "string"},
            "description": "The names of those parts in `waiting` without which the service is not ready.",
        },
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
        "summary": "Accept a webhook from Extend, and answer 200 once it is in the log",
        "parameters": [
            {"name": name, "in": "header", "required": True, "schema": {"type": "string"}} for name in names
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
        "responses": {
            "200": _answer("The webhook is in the log, or it was dropped because nothing needs it.", "Taken"),
            "400": _answer("INCOMPLETE: the body ended early.", "Problem"),
            "401": _answer("UNAUTHORIZED: the signature or the timestamp is missing, wrong or stale.", "Problem"),
            "405": _answer("METHOD_NOT_ALLOWED: POST only.", "Problem"),
            "413": _answer("TOO_LARGE: the body is larger than EVERYRUN_WEBHOOK_MAX_BYTES.", "Problem"),
            "503": _answer("UNAVAILABLE: the webhook was not accepted. Extend sends it again.", "Problem"),
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
    """Return the text of every generated file that can be made without a database, by its path in the repository."""
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
    """Write every generated file that can be made without a database.

    The page of tables is read from a database, so a test writes that page (see CONTRIBUTING).
    """
    for name, text in documents().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd())
