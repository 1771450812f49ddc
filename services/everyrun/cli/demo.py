"""Define ``everyrun demo``: submit inputs, and compare their results with the record of the emulator."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from everyrun.cli import exits
from everyrun.cli.console import err, fail, part_event
from everyrun.cli.stack import Faults, Plan, Processors, RunSeconds, Seed, check_emulator_options

#: Timeouts and intervals in seconds, so short that even a demo of a minute shows how Everyrun recovers from faults.
SHORT = {
    "EVERYRUN_CALL_TIMEOUT": "5",
    "EVERYRUN_DISPATCH_DEADLINE": "5",
    "EVERYRUN_DOUBT_WINDOW": "20",
    "EVERYRUN_POLL_FIRST_AFTER": "4",
    "EVERYRUN_POLL_EVERY": "4",
    "EVERYRUN_POLL_GRACE": "1",
    "EVERYRUN_SWEEP_IN_DOUBT_EVERY": "2",
}


def demo(
    inputs: Annotated[int, typer.Option(min=1, help="Number of inputs.")] = 2500,
    faults: Faults = "default",
    seed: Seed = 1,
    run_seconds: RunSeconds = "0.2:2",
    plan: Plan = "enterprise",
    processors: Processors = 1,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder to keep the stack in, so that everyrun up can start it later. Default: a temporary folder."
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file, as JSON.")] = None,
) -> None:
    """Run inputs through a stack and compare every result with the emulator's record.

    The command starts Kafka, Postgres, the emulator and every service, and stops them at the end. The exit code is 0
    only if every input is settled and every result agrees with the emulator's record.

    Example: everyrun demo --inputs 5000 --faults drop=1.0
    """
    import asyncio

    from everyrun.atomic_file import write_text
    from everyrun.cli import demo_run, job
    from everyrun.cli.signals import StoppedError, until_stopped
    from everyrun.embedded.process import PlatformError
    from everyrun.embedded.stack import Options, Stack
    from everyrun.embedded.state import StackError

    check_emulator_options(faults, run_seconds, plan)

    async def run(folder: Path) -> dict[str, Any]:
        options = Options(folder, processors, faults, seed, run_seconds, plan, env=SHORT)
        err.print("[bold]Everyrun demo[/]: Kafka, Postgres, the Extend emulator and every service, started here")
        async with Stack(options, part_event) as stack:
            return await demo_run.run(stack.endpoints, inputs)

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
        err.print(f"The stack's data is kept in {data_dir}. To look at it, run: everyrun up --data-dir {data_dir}")
    if not (figures["balanced"] and figures["agrees_with_truth"] and figures["open"] == 0):
        raise typer.Exit(exits.ERROR)
