"""Run the demo on a running stack: submit inputs, show progress, and compare the results with the emulator's record."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg
import httpx
from rich.live import Live
from rich.table import Table

from everyrun.cli import job
from everyrun.cli.console import err, out, print_table
from everyrun.cli.emulator_check import Comparison, least_requests
from everyrun.cli.progress import JobProgress
from everyrun.embedded.state import NO_PROXY

#: The demo gives up if no input settles for this many seconds.
_STUCK_AFTER = 180.0
#: Maximum number of seconds to wait until the results agree with the emulator's record.
_AGREE_WITHIN = 60.0


async def run(endpoints: dict[str, str], count: int) -> dict[str, Any]:
    """Submit inputs, show their progress and the comparison, and return the figures. Raises JobError."""
    headers = {"authorization": f"Bearer {endpoints['api_token']}"}
    async with httpx.AsyncClient(headers=headers, timeout=120, mounts=NO_PROXY) as http:
        began = time.monotonic()
        submission = await job.submit(http, endpoints, count)
        err.print(
            f"Submitted {submission['expected']} inputs as {submission['submission_id']}, "
            f"in {submission['batches']} batches, after {time.monotonic() - began:.1f} s"
        )
        await _watch(http, endpoints, submission["submission_id"])
        report, comparison = await job.wait_until_agreed(http, endpoints, submission["submission_id"], _AGREE_WITHIN)
        least = least_requests(await job.fetch_truth(http, endpoints))
        seconds = time.monotonic() - began
        stats = (await http.get(f"{endpoints['emulator_url']}/_emulator/stats")).json()
    figures = await _figures(endpoints, report, comparison, stats, seconds)
    figures["vendor_requests_least"] = least
    _show(figures, comparison, stats)
    return figures


async def _watch(http: httpx.AsyncClient, endpoints: dict[str, str], submission_id: str) -> dict[str, Any]:
    """Show the progress until every input is settled, or until no input has settled for _STUCK_AFTER seconds."""
    progress = JobProgress()
    last, moved = -1, time.monotonic()
    with Live(progress.table(), console=err, refresh_per_second=4, transient=not err.is_terminal) as live:
        while True:
            report = await job.fetch_report(http, endpoints, submission_id)
            live.update(progress.update(report))
            if report["settled"] != last:
                last, moved = report["settled"], time.monotonic()
            if report["open"] == 0 or time.monotonic() - moved > _STUCK_AFTER:
                return report
            await _review(http, endpoints, report)
            await asyncio.sleep(0.25)


async def _review(http: httpx.AsyncClient, endpoints: dict[str, str], report: dict[str, Any]) -> None:
    """Approve the runs that wait for a review, as a person would. The emulator's fault ``review`` causes such runs."""
    if not report["by_status"].get("NEEDS_REVIEW"):
        return
    for line in await job.fetch_truth(http, endpoints):
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
    table = Table("", "Everyrun says", "emulator", title="Everyrun's report beside the emulator's record")
    statuses = ", ".join(f"{n} {status}" for status, n in sorted(figures["by_status"].items()))
    table.add_row("inputs submitted", str(figures["expected"]), "")
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
        f"{least['run']} and {least['get']} at least",
    )
    table.add_row("balanced", "yes" if figures["balanced"] else "[red]no[/]", "")
    table.add_row("agrees, row by row", "yes" if comparison.agrees else "[red]no[/]", "")
    print_table(table)
    for difference in comparison.differences:
        err.print(f"[red]{difference}[/]")
    rate = figures["settled"] / figures["seconds"]
    out.print(f"{figures['settled']} inputs accounted for in {figures['seconds']:.1f} s ({rate:.0f} a second)")
