"""A registered batch must have runs at Extend; what cannot be asked is accepted, and said."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from everyrun.extend.client import Extend
from everyrun.settings import Settings
from everyrun.submission.intake import batch_registration
from everyrun.submission.intake.batch_registration import UnknownBatchError, check_batch


class Pool:
    """A database that has registered the batches given."""

    def __init__(self, *registered: str) -> None:
        self._registered = registered

    async def fetchrow(self, _statement: str, batch_id: str) -> str | None:
        return batch_id if batch_id in self._registered else None


async def check(answer: httpx.Response, *registered: str) -> str | None:
    asked = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return answer

    async with Extend(Settings(extend_api_key="sk_1", plan="enterprise"), httpx.MockTransport(handle)) as extend:
        pool: Any = Pool(*registered)
        try:
            return await check_batch(pool, extend, "batch_x")
        finally:
            assert registered or asked[0].url.params["batchId"] == "batch_x"


async def test_a_batch_without_runs_is_refused() -> None:
    with pytest.raises(UnknownBatchError, match="Extend lists no run of batch_x: is the id right"):
        await check(httpx.Response(200, json={"object": "list", "data": []}))


async def test_a_batch_with_a_run_or_a_registration_is_accepted() -> None:
    assert await check(httpx.Response(200, json={"object": "list", "data": [{"id": "run_1"}]})) is None
    assert await check(httpx.Response(200, json={"object": "list", "data": []}), "batch_x") is None


async def test_a_batch_is_accepted_if_extend_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_registration, "_TIMEOUT", 0.2)
    for answer in (httpx.Response(503), httpx.Response(401, json={"code": "X", "message": "no", "retryable": False})):
        assert await check(answer)
