"""Find inputs that stall without a reason: ``everyrun list`` must always say why nothing moves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import httpx

from chaos.commands import everyrun
from chaos.stage import Stage

#: If unsent inputs do not move for more than this many seconds, a reason must be shown.
STALL_AFTER = 5.0
#: Seconds between two checks for the reason.
_CHECK_EVERY = 3.0
#: The statuses of inputs that have not been sent, or may not have been.
_UNSENT = ("WAITING", "SENDING", "IN_DOUBT")


class StallRecord:
    """Measures how long unsent inputs stall without a reason while every part is ready. Pure."""

    def __init__(self) -> None:
        self._unsent: dict[str, int] = {}
        self._since: float | None = None
        self._checked = 0.0
        self._seconds = 0.0
        self._worst = ""

    def observe(self, by_status: Mapping[str, int], ready: bool, now: float) -> bool:
        """Record the statuses of the inputs; return True if it is time to check for a reason.

        Time in which a part is not ready does not count: that part is the reason.
        """
        unsent = {status: by_status[status] for status in _UNSENT if by_status.get(status)}
        if not unsent or not ready or unsent != self._unsent or self._since is None:
            self._unsent, self._since, self._checked = unsent, now, 0.0
            return False
        if now - self._since < STALL_AFTER or now - self._checked < _CHECK_EVERY:
            return False
        self._checked = now
        return True

    def record_reason(self, reason: str) -> None:
        """Record the reason that was shown at the last check; empty if there was none."""
        seconds = self._checked - self._since if self._since is not None else 0.0
        if not reason and seconds > self._seconds:
            self._seconds = seconds
            self._worst = ", ".join(f"{number} {status}" for status, number in self._unsent.items())

    @property
    def unexplained(self) -> str:
        """The longest stall without a reason, as a sentence; empty if there was none."""
        return f"stalled for {self._seconds:.0f} s without a reason: {self._worst}" if self._worst else ""


def reason_in(listed: str, submission_id: str) -> str:
    """Return the reason that ``everyrun list`` shows: the last column of the row of the submission. Pure."""
    for line in listed.splitlines():
        # The border of the table is ASCII if the locale allows nothing else.
        cells = [cell.strip() for cell in line.replace("|", "│").split("│")]
        if len(cells) > 2 and cells[1] == submission_id:
            return cells[-2]
    return ""


class JobFollower:
    """Follows a job in the background: its settled and open inputs, and its stalls."""

    def __init__(self, stage: Stage, submission_id: str) -> None:
        self._stage = stage
        self.submission_id = submission_id
        self.settled = self.open = 0
        self.stalls = StallRecord()

    async def run(self) -> None:
        """Follow the job until cancelled."""
        url = f"{self._stage.endpoints['query_url']}/v1/submissions/{self.submission_id}/progress"
        while True:
            by_status: dict[str, int] = {}
            try:
                answer = await self._stage.http.get(url)
                if answer.status_code == 200:
                    found = answer.json()
                    self.settled, self.open, by_status = found["settled"], found["open"], found["by_status"]
            except httpx.TransportError:
                pass
            if self.stalls.observe(by_status, self._stage.is_ready(), time.monotonic()):
                listed = await everyrun(self._stage, "list", "--limit", "100", within=30)
                if self._stage.is_ready():
                    self.stalls.record_reason(reason_in(listed.out, self.submission_id))
            await asyncio.sleep(0.25)

    async def first_settled(self) -> None:
        """Wait until a row of the job is settled."""
        while not self.settled:
            await asyncio.sleep(0.05)

    async def seen(self) -> None:
        """Wait until the query service has answered for the job."""
        while not self.settled + self.open:
            await asyncio.sleep(0.05)
