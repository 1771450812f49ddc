"""``everyrun demo``: the main job, end to end, on a real Kafka and a real Postgres, beside the truth."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import httpx
import typer
from rich.live import Live
from rich.table import Table

from everyrun.atomic_file import write_text
from everyrun.cli import exits, job
from everyrun.cli.console import err, fail, out, part_event, print_table
from everyrun.cli.emulator_check import Comparison, least_requests
from everyrun.cli.progress import JobProgress
from everyrun.cli.signals import StoppedError, until_stopped
from everyrun.cli.stack import Faults, Plan, Processors, RunSeconds, Seed, check_emulator_options
from everyrun.embedded.state import NO_PROXY

#: Time-outs and windows of a demo: short, so that faults are seen to be mended.
SHORT = {
    "EVERYRUN_CALL_TIMEOUT": "5",
    "EVERYRUN_DISPATCH_DEADLINE": "5",
    "EVERYRUN_DOUBT_WINDOW": "20",
    "EVERYRUN_POLL_FIRST_AFTER": "4",
    "EVERYRUN_POLL_EVERY": "4",
    "EVERYRUN_POLL_GRACE": "1",
    "EVERYRUN_SWEEP_IN_DOUBT_EVERY": "2",
}
#: After this long without an input settling the demo gives up, in seconds.
_STUCK_AFTER = 180.0
_AGREE_WITHIN = 60.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="The stack")(demo)


def demo(
    inputs: Annotated[int, typer.Option(min=1, help="How many inputs.")] = 2500,
    faults: Faults = "default",
    seed: Seed = 1,
    run_seconds: RunSeconds = "0.2:2",
    plan: Plan = "enterprise",
    processors: Processors = 1,
    data_dir: Annotated[
        Path | None, typer.Option(help="Keep the stack in this folder; everyrun up can open it afterwards.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Bring a stack up, send inputs through it, and compare every result with what really happened.

    Ends with 0 only if every input is accounted for and agrees with the emulator's truth.

    Example: everyrun demo --inputs 5000 --faults drop=1.0
    """
    from everyrun.embedded.process import PlatformError
    from everyrun.embedded.stack import Options, Stack
    from everyrun.embedded.state import StackError

    check_emulator_options(faults, run_seconds, plan)

    async def run(folder: Path) -> dict[str, Any]:
        options = Options(folder, processors, faults, seed, run_seconds, plan, env=SHORT)
        err.print("[bold]Everyrun demo[/]: Kafka, Postgres, the Extend emulator and every service, started here")
        async with Stack(options, part_event) as stack:
            return await _job(stack.endpoints, inputs)

    try:
        if data_dir is not None:
            figures = asyncio.run(until_stopped(run(data_dir)))
        else:
            with tempfile.TemporaryDirectory(prefix="everyrun-demo-", ignore_cleanup_errors=True) as folder:
                figures = asyncio.run(until_stopped(run(Path(folder))))
    except (StackError, PlatformError, job.JobError) as error:
        fail(str(error))
    except StoppedError:
        fail("interrupted", exits.INTERRUPTED)
    if json_file is not None:
        try:
            write_text(json_file, json.dumps(figures, indent=2) + "\n")
        except OSError as error:
            fail(f"{json_file}: {error.strerror}")
    if data_dir is not None:
        err.print(f"Kept in {data_dir}; look around with: everyrun up --data-dir {data_dir}")
    if not (figures["balanced"] and figures["agrees_with_truth"] and figures["open"] == 0):
        raise typer.Exit(exits.ERROR)


async def _job(endpoints: dict[str, str], count: int) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {endpoints['api_token']}"}
    async with httpx.AsyncClient(headers=headers, timeout=120, mounts=NO_PROXY) as http:
        began = time.monotonic()
        submission = await job.hand_in(http, endpoints, count)
        err.print(
            f"Handed in {submission['expected']} inputs as {submission['submission_id']}, "
            f"in {submission['batches']} batches, after {time.monotonic() - began:.1f} s"
        )
        await _watch(http, endpoints, submission["submission_id"])
        report, comparison = await job.agree(http, endpoints, submission["submission_id"], _AGREE_WITHIN)
        least = least_requests(await job.truth(http, endpoints))
        seconds = time.monotonic() - began
        stats = (await http.get(f"{endpoints['emulator_url']}/_emulator/stats")).json()
    figures = await _figures(endpoints, report, comparison, stats, seconds)
    figures["vendor_requests_least"] = least
    _show(figures, comparison, stats)
    return figures


async def _watch(http: httpx.AsyncClient, endpoints: dict[str, str], submission_id: str) -> dict[str, Any]:
    """Show progress until every input is settled, or none has been for long."""
    progress = JobProgress()
    last, moved = -1, time.monotonic()
    with Live(progress.table(), console=err, refresh_per_second=4, transient=not err.is_terminal) as live:
        while True:
            report = await job.report(http, endpoints, submission_id)
            live.update(progress.update(report))
            if report["settled"] != last:
                last, moved = report["settled"], time.monotonic()
            if report["open"] == 0 or time.monotonic() - moved > _STUCK_AFTER:
                return report
            await _review(http, endpoints, report)
            await asyncio.sleep(0.25)


async def _review(http: httpx.AsyncClient, endpoints: dict[str, str], report: dict[str, Any]) -> None:
    """Be the person who approves, where the fault `review` is asked for."""
    if not report["by_status"].get("NEEDS_REVIEW"):
        return
    for line in await job.truth(http, endpoints):
        if line["status"] == "NEEDS_REVIEW":
            url = f"{endpoints['emulator_url']}/_emulator/runs/{line['run_id']}"
            await http.post(url, json={"action": "review_approve"})


async def _figures(
    endpoints: dict[str, str], report: dict[str, Any], comparison: Comparison, stats: dict[str, Any], seconds: float
) -> dict[str, Any]:
    connection = await asyncpg.connect(endpoints["postgres_dsn"])
    try:
        quarantined = await connection.fetchval("select count(*) from everyrun.quarantine")
    finally:
        await connection.close()
    return {
        "expected": report["expected"],
        "settled": report["settled"],
        "open": report["open"],
        "unmatched": report["unmatched"],
        "duplicates": report["duplicates"],
        "quarantined": quarantined,
        "double_batches": comparison.double_batches,
        "by_status": report["by_status"],
        "vendor_requests": stats["requests"],
        "balanced": report["balanced"],
        "agrees_with_truth": comparison.agrees,
        "seconds": round(seconds, 2),
    }


def _show(figures: dict[str, Any], comparison: Comparison, stats: dict[str, Any]) -> None:
    table = Table("", "Everyrun says", "in truth", title="The report beside the emulator's truth")
    statuses = ", ".join(f"{n} {status}" for status, n in sorted(figures["by_status"].items()))
    table.add_row("inputs handed in", str(figures["expected"]), "")
    table.add_row(
        "settled", f"{figures['settled']} ({statuses})", f"{stats['runs']} runs in {stats['batches']} batches"
    )
    table.add_row("open, unmatched", f"{figures['open']}, {figures['unmatched']}", "")
    table.add_row("duplicate runs", str(figures["duplicates"]), str(comparison.duplicates))
    webhooks = stats["webhooks"]
    lost = f"{webhooks['delivered']} delivered, {webhooks['dropped']} lost on purpose"
    table.add_row("webhooks", f"{figures['quarantined']} in quarantine", lost)
    requests = figures["vendor_requests"]
    least = figures["vendor_requests_least"]
    table.add_row(
        "requests to Extend",
        f"{requests['run']} batch calls, {requests['get']} GETs",
        f"{least['run']} and {least['get']} at the least",
    )
    table.add_row("balanced", "yes" if figures["balanced"] else "[red]no[/]", "")
    table.add_row("agrees, row by row", "yes" if comparison.agrees else "[red]no[/]", "")
    print_table(table)
    for difference in comparison.differences:
        err.print(f"[red]{difference}[/]")
    rate = figures["settled"] / figures["seconds"]
    out.print(f"{figures['settled']} inputs accounted for in {figures['seconds']:.1f} s ({rate:.0f} a second)")
