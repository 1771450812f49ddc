"""``everyrun doctor``: check an installation, and print the findings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from everyrun.cli import exits
from everyrun.cli.arguments import DataDir
from everyrun.cli.console import err, fail, out

if TYPE_CHECKING:
    from everyrun.doctor.findings import Finding
    from everyrun.settings import Settings

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def doctor(
    workflow: Annotated[
        str | None,
        typer.Option(help="Workflow to check. Default: the emulator's workflow, or every workflow with submissions."),
    ] = None,
    polling_only: Annotated[
        bool,
        typer.Option(
            "--polling-only", help="Skip the checks of webhooks. For installations that only poll for results."
        ),
    ] = False,
    object_: Annotated[
        str | None,
        typer.Option("--object", help="Object (s3://..., gs://..., az://...) that the submission service must read."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the findings as JSON.")] = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Check the set-up: find what is wrong and how to fix it.

    The command checks Extend (key, workflow, webhook endpoint), Kafka, Postgres, the clocks and every service. It also
    checks that the result tables keep up with the log, that the lists of runs at Extend are read regularly, and that
    no input is overdue. It prints one line per check: ok, warning or failed.

    The command changes no data. It writes one test record to the topic for probes. It also posts a signed test webhook,
    which the bridge recognises and drops.

    Exit codes: 0 nothing failed; 1 something failed; 2 a setting is missing or wrong.

    Example: everyrun doctor --workflow workflow_abc
    """
    import asyncio
    import logging

    import msgspec

    from everyrun.doctor.examine import examine

    # Without this, the client libraries would log every failure to connect. The findings report it once.
    logging.disable(logging.CRITICAL)
    settings, workflow_of_stack = _settings(data_dir)
    findings = asyncio.run(examine(settings, workflow or workflow_of_stack, polling_only=polling_only, address=object_))
    if as_json:
        ok = all(finding.level != "failed" for finding in findings)
        body = {"ok": ok, "findings": [msgspec.to_builtins(finding) for finding in findings]}
        typer.echo(json.dumps(body, indent=2))
    else:
        _show(findings)
    if any(finding.level == "failed" for finding in findings):
        raise typer.Exit(exits.ERROR)


def _settings(data_dir: Path) -> tuple[Settings, str | None]:
    """Return the settings of the environment and of the running stack, and the stack's workflow (or None).

    A setting of the environment takes precedence over the same setting of the stack.
    """
    from everyrun.cli.chosen import chosen
    from everyrun.embedded.state import read_endpoints
    from everyrun.settings import SettingsError, load

    endpoints = read_endpoints(data_dir)
    given: dict[str, Any] = {}
    if endpoints is not None:
        names = ("kafka_bootstrap", "postgres_dsn", "extend_api_key", "extend_base_url", "api_token", "processor_urls")
        services = ("submission", "bridge", "query", "reconciler", "replay", "notifier")
        given = {name: endpoints[name] for name in (*names, *(f"{service}_url" for service in services))}
        given["webhook_secrets"] = endpoints["webhook_secret"]
        if endpoints["emulator_url"]:
            given["signed_url_origins"] = [endpoints["emulator_url"]]
            given["webhook_url"] = endpoints["bridge_url"] + "/webhooks/extend"
    try:
        settings = load(**(chosen({**given, "emulator_url": endpoints["emulator_url"]}, load()) if endpoints else {}))
    except SettingsError as error:
        fail(str(error), exits.USAGE)
    if not (settings.kafka_bootstrap or settings.postgres_dsn or settings.extend_api_key):
        fail(
            f"there is nothing to check: no stack runs in {data_dir} (start one with: everyrun up), and none of "
            "EXTEND_API_KEY, EVERYRUN_KAFKA_BOOTSTRAP and EVERYRUN_POSTGRES_DSN is set",
            exits.USAGE,
        )
    return settings, (endpoints or {}).get("workflow_id") or None


def _show(findings: list[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        colour = _COLOURS[finding.level]
        line = f"[{colour}]{finding.level:<7}[/]  {escape(finding.check):<{width}}  {escape(finding.found)}"
        out.print(line, soft_wrap=True)
        if finding.remedy:
            out.print(f"{'':<9}{'':<{width}}  [dim]→ {escape(finding.remedy)}[/]", soft_wrap=True)
    failed = sum(finding.level == "failed" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    err.print(f"{len(findings)} checks: {failed} failed, {warnings} warnings")
