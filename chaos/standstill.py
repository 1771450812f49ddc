"""Do inputs stand still without a reason? A person who asks ``everyrun list`` must be told why nothing moves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import httpx

from chaos.commands import everyrun
from chaos.stage import Stage

#: While inputs that were not sent stand still for longer than this, a reason must be given, in seconds.
STILL = 5.0
#: Seconds between two questions for the reason.
_ASK_AGAIN = 3.0
#: The statuses of inputs that Everyrun has not sent, or of which it does not know whether they were.
_UNSENT = ("WAITING", "SENDING", "IN_DOUBT")


class Standstill:
    """Notes how long unsent inputs stand still while every part is up, and for how long no reason was given. Pure."""

    def __init__(self) -> None:
        self._unsent: dict[str, int] = {}
        self._since: float | None = None
        self._asked = 0.0
        self._seconds = 0.0
        self._what = ""

    def look(self, by_status: Mapping[str, int], up: bool, now: float) -> bool:
        """Take in how the inputs stand; return True if it is time to ask for the reason.

        Time in which a part is away does not count: a part that was killed is the reason.
        """
        unsent = {status: by_status[status] for status in _UNSENT if by_status.get(status)}
        if not unsent or not up or unsent != self._unsent or self._since is None:
            self._unsent, self._since, self._asked = unsent, now, 0.0
            return False
        if now - self._since < STILL or now - self._asked < _ASK_AGAIN:
            return False
        self._asked = now
        return True

    def answer(self, reason: str) -> None:
        """Take in the reason that was given when it was asked for; empty if there was none."""
        seconds = self._asked - self._since if self._since is not None else 0.0
        if not reason and seconds > self._seconds:
            self._seconds = seconds
            self._what = ", ".join(f"{number} {status}" for status, number in self._unsent.items())

    @property
    def unexplained(self) -> str:
        """The longest time without a reason, as a sentence; empty if there was none."""
        return f"stood still for {self._seconds:.0f} s without a reason: {self._what}" if self._what else ""


def reason_in(listed: str, submission_id: str) -> str:
    """Return what ``everyrun list`` gives as the reason: the last column of the submission's row. Pure."""
    for line in listed.splitlines():
        # The table's border is ASCII where the locale has nothing else.
        cells = [cell.strip() for cell in line.replace("|", "│").split("│")]
        if len(cells) > 2 and cells[1] == submission_id:
            return cells[-2]
    return ""


class Following:
    """Follows a job in the background: how much of it is settled and open, and whether it stands still."""

    def __init__(self, stage: Stage, submission_id: str) -> None:
        self._stage = stage
        self.submission_id = submission_id
        self.settled = self.open = 0
        self.standstill = Standstill()

    async def run(self) -> None:
        """Follow until cancelled."""
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
            if self.standstill.look(by_status, self._stage.up(), time.monotonic()):
                listed = await everyrun(self._stage, "list", "--limit", "100", within=30)
                if self._stage.up():
                    self.standstill.answer(reason_in(listed.out, self.submission_id))
            await asyncio.sleep(0.25)

    async def first_settled(self) -> None:
        """Return once a row of the job is settled."""
        while not self.settled:
            await asyncio.sleep(0.05)

    async def seen(self) -> None:
        """Return once the query service has answered for the job."""
        while not self.settled + self.open:
            await asyncio.sleep(0.05)
