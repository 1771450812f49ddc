"""Writes ``schemas/`` and the generated pages of ``docs/reference/`` from the code's own types.

``python -m everyrun.schemas [FOLDER]``. A test holds what is committed in step with what this makes.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any, cast

import asyncpg
import msgspec
import typer
import yaml
from pydantic import SecretStr

from everyrun import __version__
from everyrun.cli import exits
from everyrun.cli.app import app
from everyrun.log import events
from everyrun.log.topics import declared
from everyrun.log.upcast import dataschema
from everyrun.openapi import REF, Problem
from everyrun.query.api import query_api
from everyrun.replay.api import replay_api
from everyrun.settings import Settings, load, variable
from everyrun.submission.api.submissions import submission_api

_KEYS = {
    "batches": "chunk (of a part: the chunk that it was first cut from); of a registered batch the batchId; "
    "of what concerns no chunk the submission, workflow or token id",
    "runs": "chunk that the reserved metadata key names; without one the batchId; without either the run id",
    "deliveries": "run id",
    "results": "input id",
    "reports": "batchId, chunk or submission id",
    "quarantine": "source position of the message",
    "probes": "host of the doctor",
}


def event_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema of the value of each event, by event type."""
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
    """The topics, their keys, retention and messages, as AsyncAPI 3."""
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
    """The OpenAPI document of each HTTP service."""
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
    working, not_working = _answer("It is so.", "Health"), _answer("It is not: `waiting` says why.", "Health")
    live = {"summary": "Whether the process lives", "responses": {"200": working, "503": not_working}}
    ready = {"summary": "Whether it can do its work; if not, why", "responses": {"200": working, "503": not_working}}
    metrics = {
        "summary": "Metrics, as Prometheus reads them",
        "responses": {"200": _answer("In Prometheus' text format.", "", "text/plain")},
    }
    paths = {"/healthz": {"get": live}, "/readyz": {"get": ready}, "/metrics": {"get": metrics}}
    components = {"schemas": {"Health": _HEALTH}}
    info = {"title": f"Everyrun {name}", "version": "1"}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components}


def _bridge() -> dict[str, Any]:
    document = _health("bridge")
    names = ("x-extend-request-timestamp", "x-extend-request-signature")
    hook = {
        "summary": "A webhook of Extend: 200 once it is in the log",
        "parameters": [
            {"name": name, "in": "header", "required": True, "schema": {"type": "string"}} for name in names
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
        "responses": {
            "200": _answer("It is in the log, or it is of no use and dropped.", "Taken"),
            "400": _answer("INCOMPLETE: the body was cut short.", "Problem"),
            "401": _answer("UNAUTHORIZED: the signature or the timestamp is missing, wrong or stale.", "Problem"),
            "405": _answer("METHOD_NOT_ALLOWED: POST only.", "Problem"),
            "413": _answer("TOO_LARGE: the body is larger than EVERYRUN_WEBHOOK_MAX_BYTES.", "Problem"),
            "503": _answer("UNAVAILABLE: not taken; Extend sends it again.", "Problem"),
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


def settings_page() -> str:
    """docs/reference/settings.md."""
    lines = [
        "# Settings",
        "",
        "Every setting is an environment variable. A service that misses one it needs, or finds one that is wrong,",
        "ends at its start with status 2 and names it. Times are in seconds, sizes in bytes.",
        "Generated by `make schemas`.",
        "",
        "| Variable | Default | Meaning |",
        "|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        shown = "" if default in ("", [], None) else f"`{default}`"
        lines.append(f"| `{variable(name)}` | {shown} | {field.description} |")
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    """docs/reference/cli.md."""
    group = cast(Any, typer.main.get_command(app))
    lines = [
        "# The command line",
        "",
        exits.HELP,
        "`everyrun COMMAND --help` says what is here. Generated by `make schemas`.",
    ]
    for name, command in group.commands.items():
        lines += _command(name, command)
    return "\n".join(lines) + "\n"


def _command(name: str, command: Any) -> list[str]:
    """A command's part of the page; of a group, that of each of its commands, after its own where it has one."""
    if hasattr(command, "commands"):
        inner = [line for own, one in command.commands.items() for line in _command(f"{name} {own}", one)]
        return [*(_one_command(name, command) if command.invoke_without_command else []), *inner]
    return _one_command(name, command)


def _one_command(name: str, command: Any) -> list[str]:
    about = re.split(r"\n\nExample: ", inspect.cleandoc(command.callback.__doc__ or ""))
    lines = ["", f"## everyrun {name}", "", about[0].replace("<", "&lt;")]
    lines += ["", f"```sh\n{about[1]}\n```"] if len(about) > 1 else []
    rows = [_parameter(p) for p in command.params if p.name != "help"]
    return [*lines, *(["", "| | |", "|---|---|", *rows] if rows else [])]


def _parameter(parameter: Any) -> str:
    option = parameter.param_type_name == "option"
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    names = names if option else f"`{parameter.metavar or parameter.name.upper()}`"
    help_text = " ".join((parameter.help or "").split()).replace("|", "\\|")
    default = parameter.default
    shown = f" Default: `{default}`." if option and default not in (None, False, "") and not callable(default) else ""
    return f"| {names} | {help_text}{shown} |"


_TABLES = """
select c.relname as name, c.relkind::text as kind, obj_description(c.oid) as comment,
       (select json_agg(json_build_object(
                   'name', a.attname,
                   'type', format_type(a.atttypid, a.atttypmod)
                           || case when l.collname <> 'default' then format(' collate %I', l.collname) else '' end,
                   'null', not a.attnotnull, 'comment', col_description(c.oid, a.attnum))
                        order by a.attnum)
        from pg_attribute a left join pg_collation l on l.oid = a.attcollation
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
       (select json_agg(json_build_object(
                   'name', i.relname, 'primary', x.indisprimary, 'unique', x.indisunique,
                   'columns', (select string_agg(pg_get_indexdef(x.indexrelid, n, true), ', ' order by n)
                               from generate_series(1, x.indnkeyatts) n),
                   'where', pg_get_expr(x.indpred, x.indrelid, true))
                        order by not x.indisprimary, not x.indisunique, i.relname)
        from pg_index x join pg_class i on i.oid = x.indexrelid where x.indrelid = c.oid) as indexes
from pg_class c
where c.relnamespace = 'everyrun'::regnamespace and c.relkind in ('r', 'v') and c.relname <> 'schema_migrations'
order by c.relkind, c.relname
"""


async def tables_page(connection: asyncpg.Connection) -> str:
    """docs/reference/tables.md, from a migrated database."""
    lines = [
        "# The result tables",
        "",
        "Postgres, schema `everyrun`: a projection of the Kafka topics, written by the processor alone. Drop it,",
        "restart, and it is made again row for row ([what that costs](../how-to/rebuild.md)). Generated by",
        "`make schemas`.",
        "",
        _ABOUT_TABLES,
    ]
    for row in await connection.fetch(_TABLES):
        columns, indexes = _decoded(row["columns"]), _decoded(row["indexes"]) or []
        kind = "view" if row["kind"] == "v" else "table"
        lines += [
            "",
            f"## {row['name']} ({kind})",
            "",
            row["comment"] or "",
            "",
            "| Column | Type | Null | |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {c['name']} | {c['type']} | {'yes' if c['null'] else ''} | {c['comment'] or ''} |" for c in columns
        ]
        lines += ["", "Keys and indexes:", "", *map(_index, indexes)] if indexes else []
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def _decoded(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _index(index: dict[str, Any]) -> str:
    kind = "primary key" if index["primary"] else "unique" if index["unique"] else "index"
    of = f", of rows where `{index['where']}`" if index["where"] else ""
    return f"- {kind} `{index['name']}` on `{index['columns']}`{of}"


_ABOUT_TABLES = """\
**Order of text.** A column with `collate "C"` is compared and sorted by its bytes, whatever the database's locale is.
So ids page in one order everywhere, and of two versions the one that is greater by its bytes is the newer state.
Compare a version with a text of your own under the same collation: `version > $1 collate "C"`.

**What `run` holds.** The whole WorkflowRun of Extend, as JSON: `run ->> 'status'`, `run ->> 'dashboardUrl'`,
`run -> 'metadata'` as it came back, `run -> 'files'`, `run -> 'usage'`, and `run -> 'stepRuns'`, one element for each
step that has run. It is null in `results` until a run is known.

**Where extracted values are.** The view `extractions` has a row for each extracting step, with its values as `value`.
It reads `run -> 'stepRuns' -> N -> 'result' -> 'extractRun' -> 'output' -> 'value'`, where N is the place of the step.
One value of one submission:

```sql
select external_id, value ->> 'invoice_number' from everyrun.extractions
where input_id >= 'sub_…:' and input_id < 'sub_…;' and step_name = 'extract';
```"""


def documents() -> dict[str, str]:
    """Every generated file that needs no database: path from the top, and text."""
    files = {f"schemas/events/{tag}.json": _json(schema) for tag, schema in event_schemas().items()}
    files |= {f"schemas/openapi/{name}.json": _json(document) for name, document in openapis().items()}
    files["schemas/asyncapi.yaml"] = yaml.safe_dump(asyncapi(), sort_keys=False, width=120)
    files["docs/reference/settings.md"] = settings_page()
    files["docs/reference/cli.md"] = cli_page()
    return files


def _json(document: Any) -> str:
    return json.dumps(document, indent=2, sort_keys=False) + "\n"


def main(folder: Path) -> None:
    """Write what needs no database; the page of tables is written by the test that has one (see CONTRIBUTING)."""
    for name, text in documents().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd())
