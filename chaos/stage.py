"""A stack to be broken: short time-outs, every failpoint built in and disarmed, Extend's faults changed as it runs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from everyrun import failpoints
from everyrun.cli.demo import SHORT
from everyrun.embedded.stack import Options, Stack

#: As short as lets every cell end in time, with a window in which all evidence can come.
ENV = {
    **SHORT,
    "EVERYRUN_CALL_TIMEOUT": "4",
    "EVERYRUN_DISPATCH_DEADLINE": "3",
    "EVERYRUN_DOUBT_WINDOW": "8",
    "EVERYRUN_DOUBT_RESENDS": "20",
    "EVERYRUN_CHUNK_MAX_INPUTS": "250",
    failpoints.VARIABLE: ",".join(failpoints.POINTS),
}
#: About a third of the payloads are larger than this, and come as signed links.
_LINK_OVER = 5000


def hush() -> None:
    """Let the Kafka client not tell of every refused connection to a broker that was killed."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


class Stage:
    """A running stack, and a client with its token."""

    def __init__(self, stack: Stack, http: httpx.AsyncClient) -> None:
        self.stack = stack
        self.http = http
        self.endpoints = stack.endpoints
        #: What commands wrote that did not end with 0.
        self.notes: list[str] = []

    async def faults(self, faults: str) -> None:
        """Let Extend have these faults from now on."""
        url = f"{self.endpoints['emulator_url']}/_emulator/faults"
        (await self.http.put(url, json={"faults": faults})).raise_for_status()

    async def runs(self) -> int:
        """How many runs Extend has made so far."""
        stats = (await self.http.get(f"{self.endpoints['emulator_url']}/_emulator/stats")).json()
        return int(stats["runs"])

    def deaths(self) -> int:
        """How often parts were started again so far."""
        return sum(self.stack.part(name).restarts for name in self.stack.names)

    def up(self) -> bool:
        """Return True if every part is running and ready."""
        parts = [self.stack.part(name) for name in self.stack.names]
        return all(part.state == "ready" and part.pid is not None for part in parts)

    def arm(self, *points: str) -> None:
        """Let these points kill their process, once."""
        for point in points:
            failpoints.done(self.stack.data_dir, point).unlink()

    def has_struck(self, point: str) -> bool:
        """Whether the point has killed its process."""
        return failpoints.done(self.stack.data_dir, point).exists()

    def disarm(self) -> None:
        """Let no point kill any more."""
        for point in failpoints.POINTS:
            mark = failpoints.done(self.stack.data_dir, point)
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()

    def processes(self) -> dict[str, int | None]:
        """The process of each part that is a service of ours."""
        others = ("kafka", "postgres", "emulator")
        return {name: self.stack.part(name).pid for name in self.stack.names if name not in others}

    def tail(self) -> str:
        """The last words of the services, and of commands, for a cell that failed."""
        parts = [f"--- {name}\n{self.stack.part(name).tail(40)}" for name in self.stack.names]
        return "\n".join([*parts, *(f"--- {note}" for note in self.notes)])


@contextlib.asynccontextmanager
async def staged(
    folder: Path, seed: int, *, processors: int = 1, run_seconds: str = "0.5:15", **env: str
) -> AsyncIterator[Stage]:
    """A stage while the block runs; no failpoint is armed."""
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
    for point in failpoints.POINTS:
        mark = failpoints.done(stack.data_dir, point)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    async with stack:
        headers = {"authorization": f"Bearer {stack.endpoints['api_token']}"}
        async with httpx.AsyncClient(headers=headers, timeout=60) as http:
            yield Stage(stack, http)
