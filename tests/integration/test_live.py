"""Progress as server-sent events, and answers that a caller has already."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import asyncpg
import httpx
import pytest

from everyrun.query import live
from everyrun.query.api import query_api
from everyrun.settings import Settings
from everyrun.store.pool import connection_setup
from tests.conftest import eventually

pytestmark = pytest.mark.stack
TOKEN = "a-token-of-sixteen-or-more"
PATH = "/v1/submissions/s/events"


class Here:
    """A query service over a submission of four inputs, all SUBMITTED at first."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool
        self.stopping = asyncio.Event()
        self.app = query_api(Settings(api_token=TOKEN), pool, self.stopping)

    async def get(self, path: str, **headers: str) -> httpx.Response:
        headers = {
            "authorization": f"Bearer {TOKEN}",
            **{name.replace("_", "-"): text for name, text in headers.items()},
        }
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://q", headers=headers) as http:
            return await http.get(path)

    async def events(self, **headers: str) -> list[tuple[str, str, dict[str, Any]]]:
        """Return kind, id and data of the events of a stream, when it has ended."""
        answer = await self.get(PATH, **headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = []
        for block in answer.text.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
            if "event" in fields:
                found.append((fields["event"], fields["id"], json.loads(fields["data"])))
        return found

    async def settle(self, number: int) -> None:
        counts = {"PROCESSED": number, "SUBMITTED": 4 - number}
        await self.pool.execute("update everyrun.batches set counts = $1", {k: n for k, n in counts.items() if n})


@pytest.fixture
async def here(database: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Here]:
    monkeypatch.setattr(live, "_EVERY", 0.1)
    async with asyncpg.create_pool(database, min_size=1, max_size=4, init=connection_setup) as pool:
        here = Here(pool)
        await pool.execute("insert into everyrun.submissions values ('s', 'w', null, 90, 4, now())")
        await pool.execute(
            "insert into everyrun.batches (chunk, attempt, batch_id, submission_id, expected, state, submitted_at,"
            " input_ids) values ('s.c1', 1, 'b1', 's', 4, 'SUBMITTED', now(), '{s:a,s:b,s:c,s:d}')"
        )
        await pool.execute(
            "insert into everyrun.results (input_id, external_id, submission_id, batch_id, position, chunk, attempt,"
            " file, metadata, status, version)"
            " values ('s:a', 'a', 's', 'b1', 1, 's.c1', 1, '{}', '{}', 'SUBMITTED', '1')"
        )
        await here.settle(0)
        yield here


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each event adds its number of settled inputs when it is sent."""
    found: list[int] = []
    whole = live.event

    def recorded(kind: str, identity: str, progress: dict[str, Any]) -> bytes:
        found.append(progress["settled"])
        return whole(kind, identity, progress)

    monkeypatch.setattr(live, "event", recorded)
    return found


async def test_events_come_with_changes_and_end_when_all_is_settled(here: Here) -> None:
    """However fast the numbers change, there is at most one event in each interval."""

    async def work() -> None:
        for _ in range(20):
            for number in range(4):
                await here.settle(number)
                await asyncio.sleep(0.01)
        await here.settle(4)

    began = time.monotonic()
    found, _ = await asyncio.gather(here.events(), work())
    elapsed = time.monotonic() - began
    assert [kind for kind, _, _ in found] == ["progress"] * (len(found) - 1) + ["settled"]
    assert 2 < len(found) <= elapsed / 0.1 + 2
    assert found[-1][2]["by_status"] == {"PROCESSED": 4}
    assert all(one[1] != other[1] for one, other in pairwise(found))
    progress = (await here.get("/v1/submissions/s/progress")).json()
    assert found[-1][2].keys() == progress.keys()


async def test_a_broken_stream_resumes_after_its_last_event(here: Here, sent: list[int]) -> None:
    async def work() -> None:
        await here.settle(1)
        await eventually(lambda: sent, "the event of the first change is sent")
        await here.settle(4)

    seen = live.event_id((await here.get("/v1/submissions/s/progress")).json())
    found, _ = await asyncio.gather(here.events(last_event_id=seen), work())
    assert [data["settled"] for _, _, data in found] == [1, 4]
    # The last event comes again: the connection may have been lost before it arrived.
    assert [kind for kind, _, _ in await here.events(last_event_id=found[-1][1])] == ["settled"]
    # The id is one of another state, or of none.
    assert len(await here.events(last_event_id="x")) == 1


async def test_streams_end_with_the_service_and_after_a_time(
    here: Here, sent: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = [asyncio.create_task(here.events()) for _ in range(3)]
    await eventually(lambda: len(sent) == 3, "each stream has sent its first event")
    assert not any(stream.done() for stream in streams)
    here.stopping.set()
    for stream in streams:
        assert [kind for kind, _, _ in await asyncio.wait_for(stream, 5)] == ["progress"]
    here.stopping.clear()
    monkeypatch.setattr(live, "_LONGEST", 0.0)
    assert len(await here.events()) == 1


async def test_all_streams_of_a_submission_share_a_read(
    here: Here, sent: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, reads = live.progress_of, []

    async def counted(*given: Any) -> Any:
        reads.append(time.monotonic())
        return await whole(*given)

    monkeypatch.setattr(live, "progress_of", counted)
    streams = [asyncio.create_task(here.events()) for _ in range(10)]
    await eventually(lambda: len(sent) == 10 and len(reads) > 3, "the streams have looked several times")
    await here.settle(4)
    for stream in streams:
        assert (await stream)[-1][0] == "settled"
    assert all(later - earlier >= 0.1 for earlier, later in pairwise(reads))


async def test_a_stream_goes_on_after_an_outage(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, reads = live.progress_of, 0

    async def failing(*given: Any) -> Any:
        nonlocal reads
        reads += 1
        if reads in (2, 3):
            raise ConnectionRefusedError
        if reads == 4:
            await here.settle(4)
        return await whole(*given)

    monkeypatch.setattr(live, "progress_of", failing)
    assert [kind for kind, _, _ in await here.events()] == ["progress", "settled"]


async def test_what_cannot_be_streamed_gets_an_answer_of_its_own(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await here.get("/v1/submissions/nix/events")).status_code == 404
    monkeypatch.setattr(live, "_MOST", 0)
    busy = await here.get(PATH)
    assert (busy.status_code, busy.json()["code"]) == (503, "BUSY")


@pytest.mark.parametrize("path", ["/v1/results/s:a", "/v1/submissions/s/report"])
async def test_an_answer_that_the_caller_has_is_not_sent_again(here: Here, path: str) -> None:
    await here.settle(4)
    first = await here.get(path)
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = await here.get(path, if_none_match=known)
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    await here.pool.execute("update everyrun.results set status = 'FAILED', version = '2'")
    await here.pool.execute("update everyrun.batches set runs_observed = 1")
    changed = await here.get(path, if_none_match=tag)
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag
