"""Checking workflows and versions: which answers refuse one, and what the message says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from everyrun.extend.client import Extend
from everyrun.settings import Settings
from everyrun.submission.intake import workflows
from everyrun.submission.intake.workflows import UnknownVersionError, UnknownWorkflowError, Workflows, unknown_workflow

NONE = {"code": "NOT_FOUND", "message": "no such workflow", "retryable": False}
LIST = {"object": "list", "data": [{"object": "workflow", "id": "workflow_invoices", "name": "Invoices"}]}
Answers = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflows, "_TIMEOUT", 0.3)


def by(one: httpx.Response, listed: httpx.Response) -> Answers:
    return lambda request: listed if request.url.path == "/workflows" else one


async def check(answer: Answers, workflow_id: str = "workflow_invocies", version: str | None = None) -> str | None:
    settings = Settings(extend_api_key="sk_1", plan="enterprise")
    async with Extend(settings, httpx.MockTransport(answer)) as extend:
        return await Workflows(extend).check(workflow_id, version)


async def test_a_known_workflow_is_accepted() -> None:
    assert await check(by(httpx.Response(200, json={"id": "w"}), httpx.Response(500))) is None


async def test_an_unknown_workflow_is_refused_with_similar_ids() -> None:
    with pytest.raises(UnknownWorkflowError, match=r"did you mean workflow_invoices \(Invoices\)\?") as unknown:
        await check(by(httpx.Response(404, json=NONE), httpx.Response(200, json=LIST)))
    assert unknown.value.near == ["workflow_invoices"]


@pytest.mark.parametrize(
    ("one", "listed"),
    [
        # A proxy's page, a missing path, an emulator without these routes, a key without permission, an outage.
        (httpx.Response(404, text="<html>not found"), httpx.Response(200, json=LIST)),
        (httpx.Response(404, json={"detail": "Not Found"}), httpx.Response(200, json=LIST)),
        (httpx.Response(404, json=NONE), httpx.Response(404, json=NONE)),
        (httpx.Response(401, json=NONE), httpx.Response(200, json=LIST)),
        (httpx.Response(400, json=NONE), httpx.Response(200, json=LIST)),
        (httpx.Response(503), httpx.Response(503)),
        (httpx.Response(404, json=NONE), httpx.Response(200, json={"data": None})),
    ],
)
async def test_an_answer_that_is_not_extends_refuses_no_workflow(one: httpx.Response, listed: httpx.Response) -> None:
    assert await check(by(one, listed))


VERSIONS = {"object": "list", "data": [{"version": "draft"}, {"version": "2"}, {"version": "1"}]}


def versions(one: httpx.Response, listed: httpx.Response) -> Answers:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/versions"):
            return listed
        return one if "/versions/" in request.url.path else httpx.Response(200, json={"id": "w"})

    return answer


async def test_an_unknown_version_is_refused_with_the_known_ones() -> None:
    answer = versions(httpx.Response(404, json=NONE), httpx.Response(200, json=VERSIONS))
    with pytest.raises(UnknownVersionError, match="no version '99' at Extend; it has: draft, 2, 1") as unknown:
        await check(answer, "w", "99")
    assert unknown.value.near == ["draft", "2", "1"]
    assert await check(answer, "w") is None


@pytest.mark.parametrize(
    ("one", "listed", "is_unsure"),
    [
        (httpx.Response(200, json={"version": "2"}), httpx.Response(500), False),
        (httpx.Response(404, json=NONE), httpx.Response(200, json={"data": [{"version": "99"}]}), False),
        (httpx.Response(404, json=NONE), httpx.Response(404, json=NONE), True),
        (httpx.Response(404, text="<html>"), httpx.Response(200, json=VERSIONS), True),
        (httpx.Response(401, json=NONE), httpx.Response(200, json=VERSIONS), True),
    ],
)
async def test_a_version_is_refused_only_if_extend_denies_it(
    one: httpx.Response, listed: httpx.Response, is_unsure: bool
) -> None:
    assert bool(await check(versions(one, listed), "w", "99")) == is_unsure


async def test_without_an_answer_no_workflow_is_refused() -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    assert "UNREACHABLE" in (await check(away) or "")


async def test_while_extend_is_unavailable_it_is_asked_once() -> None:
    asked, now = [], [0.0]

    def away(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(401, json=NONE)

    async with Extend(Settings(extend_api_key="sk_1", plan="enterprise"), httpx.MockTransport(away)) as extend:
        known = Workflows(extend, lambda: now[0])
        answers = await asyncio.gather(*(known.check(f"workflow_{n}") for n in range(20)))
        assert all(answers)
        assert len(asked) == 1
        now[0] += 16
        await known.check("workflow_0")
        assert len(asked) == 2


@pytest.mark.parametrize(
    ("asked", "listed", "complete", "said"),
    [
        ("invoices", LIST["data"], True, "did you mean workflow_invoices (Invoices)?"),
        ("WORKFLOW_INVOICES", LIST["data"], True, "did you mean workflow_invoices (Invoices)?"),
        ("w", LIST["data"], True, "; it has: workflow_invoices (Invoices)"),
        ("w", LIST["data"], False, "; it has: workflow_invoices (Invoices), ..."),
        ("w", [{"id": f"workflow_{n}"} for n in range(9)], True, "workflow_3, workflow_4, ..."),
        ("w", [], True, "and no other. Is it the key of the right workspace?"),
        ("w", [None, {"id": 3}], True, "and no other"),
    ],
)
def test_the_message_about_an_unknown_workflow(asked: str, listed: Any, complete: bool, said: str) -> None:
    assert said in str(unknown_workflow(asked, listed, complete=complete))
