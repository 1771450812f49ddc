"""Run a stack that cells can break: short timeouts, every failpoint present, faults that change while it runs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from everyrun import failpoints
from everyrun.cli.demo import SHORT
from everyrun.embedded.stack import Options, Stack

#: Timeouts short enough for every cell to end in time, with a doubt window long enough for all evidence to arrive.
ENV = {
    **SHORT,
    "EVERYRUN_CALL_TIMEOUT": "4",
    "EVERYRUN_DISPATCH_DEADLINE": "3",
    "EVERYRUN_DOUBT_WINDOW": "8",
    "EVERYRUN_DOUBT_RESENDS": "20",
    "EVERYRUN_CHUNK_MAX_INPUTS": "250",
    failpoints.VARIABLE: ",".join(failpoints.POINTS),
}
#: Size in bytes above which a payload is sent as a signed link: about a third of them are.
_LINK_OVER = 5000


def silence_kafka_client() -> None:
    """Keep the Kafka client from logging every refused connection to a broker that was killed."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


class Stage:
    """A running stack, and a client with its token."""

    def __init__(self, stack: Stack, http: httpx.AsyncClient) -> None:
        self.stack = stack
        self.http = http
        self.endpoints = stack.endpoints
        #: The output of commands that did not end with 0.
        self.notes: list[str] = []

    async def faults(self, faults: str) -> None:
        """Replace the emulator's faults."""
        url = f"{self.endpoints['emulator_url']}/_emulator/faults"
        (await self.http.put(url, json={"faults": faults})).raise_for_status()

    async def runs(self) -> int:
        """Return the number of runs that the emulator has made so far."""
        stats = (await self.http.get(f"{self.endpoints['emulator_url']}/_emulator/stats")).json()
        return int(stats["runs"])

    def restarts(self) -> int:
        """Return how often parts have been restarted so far."""
        return sum(self.stack.part(name).restarts for name in self.stack.names)

    def is_ready(self) -> bool:
        """Return True if every part is running and ready."""
        parts = [self.stack.part(name) for name in self.stack.names]
        return all(part.state == "ready" and part.pid is not None for part in parts)

    def arm(self, *points: str) -> None:
        """Make each of these failpoints kill its process, once."""
        for point in points:
            failpoints.done(self.stack.data_dir, point).unlink()

    def has_struck(self, point: str) -> bool:
        """Return True if the failpoint has killed its process since it was armed."""
        return failpoints.done(self.stack.data_dir, point).exists()

    def disarm(self) -> None:
        """Disarm every failpoint."""
        _disarm(self.stack.data_dir)

    def service_pids(self) -> dict[str, int | None]:
        """Return the process id of each service: every part except Kafka, Postgres and the emulator."""
        others = ("kafka", "postgres", "emulator")
        return {name: self.stack.part(name).pid for name in self.stack.names if name not in others}

    def tail(self) -> str:
        """Return the last log lines of every part and the output of failed commands, for a cell that failed."""
        parts = [f"--- {name}\n{self.stack.part(name).tail(40)}" for name in self.stack.names]
        return "\n".join([*parts, *(f"--- {note}" for note in self.notes)])


@contextlib.asynccontextmanager
async def running_stage(
    folder: Path, seed: int, *, processors: int = 1, run_seconds: str = "0.5:15", **env: str
) -> AsyncIterator[Stage]:
    """Run a stage during the block, with every failpoint disarmed."""
    options = Options(
        folder,
        processors=processors,
        seed=seed,
        run_seconds=run_seconds,
        env={**ENV, **env},
        link_over=_LINK_OVER,
        most_backoff=1.0,
    )
    stack = Stack(options)
    _disarm(stack.data_dir)
    async with stack:
        headers = {"authorization": f"Bearer {stack.endpoints['api_token']}"}
        async with httpx.AsyncClient(headers=headers, timeout=60) as http:
            yield Stage(stack, http)


def _disarm(data_dir: Path) -> None:
    """Mark every failpoint as done, so that none kills its process."""
    for point in failpoints.POINTS:
        mark = failpoints.done(data_dir, point)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
