"""Each fault of the emulator has its documented effect, seen from outside, and follows from the seed."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from extend_ai import AsyncExtend
from extend_ai.core.api_error import ApiError
from extend_ai.errors import TooManyRequestsError
from extend_ai.types import WorkflowRun
from extend_ai.wrapper.errors import WebhookPayloadFetchError, WebhookSignatureVerificationError
from extend_ai.wrapper.webhooks import Webhooks

from everyrun.emulator.assembly import Options, emulating
from everyrun.emulator.runs import WORKFLOW_EVENTS
from tests.conftest import eventually, free_port
from tests.contract.calls import headers, inputs
from tests.contract.conftest import KEY, WORKFLOW, Inbox


class Emulated:
    """An emulator in this process, with clients that call it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.AsyncClient(base_url=url, headers=headers(), timeout=10)
        self.sdk = AsyncExtend(token=KEY, base_url=url, timeout=10)

    async def subscribe(self, inbox: Inbox, *events: str, **payload) -> str:
        endpoint = await self.sdk.webhook_endpoints.create(
            url=inbox.url,
            name="test",
            enabled_events=[],
            api_version="2026-02-09",
            advanced_options={"payload": payload or {"format": "json"}, "headers": {"x-mine": "yes"}},
        )
        await self.sdk.webhook_subscriptions.create(
            webhook_endpoint_id=endpoint.id,
            resource_type="workflow",
            resource_id=WORKFLOW,
            enabled_events=events or [name for name in WORKFLOW_EVENTS if "step_run" not in name],
        )
        return endpoint.signing_secret

    async def submit(self, count: int) -> str:
        batch = await self.sdk.workflow_runs.create_batch(
            workflow={"id": WORKFLOW}, inputs=inputs(count), request_options={"max_retries": 0}
        )
        return batch.batch_id

    async def truth(self) -> list[dict]:
        return [json.loads(line) for line in (await self.http.get("/_emulator/truth")).text.splitlines()]

    async def stats(self) -> dict:
        return (await self.http.get("/_emulator/stats")).json()

    async def act(self, run_id: str, action: str) -> httpx.Response:
        return await self.http.post(f"/_emulator/runs/{run_id}", json={"action": action})

    async def all_ended(self) -> None:
        async def ended() -> bool:
            return all(line["ended_at"] for line in await self.truth())

        await eventually(ended, "every run ended")

    async def quiet(self) -> None:
        """Wait until every run has ended and no webhook is pending."""
        await self.all_ended()

        async def none_pending() -> bool:
            return (await self.stats())["webhooks"]["pending"] == 0

        await eventually(none_pending, "no webhook is pending")


Start = Callable[..., Awaitable[Emulated]]


@pytest.fixture
async def emulated(tmp_path: Path) -> AsyncIterator[Start]:
    """Return a function that starts an emulator with faults: ``await emulated(drop=1.0)``."""
    async with AsyncExitStack() as stack:

        async def start(seed: int = 1, folder: str = "state", first_retry: float = 0.02, **faults: float) -> Emulated:
            port = free_port()
            options = Options(KEY, WORKFLOW, seed, (0.0, 0.1), 10_000.0, faults, first_retry)
            await stack.enter_async_context(emulating(f"127.0.0.1:{port}", tmp_path / folder, options))
            one = Emulated(f"http://127.0.0.1:{port}")
            stack.push_async_callback(one.http.aclose)
            return one

        yield start


def events(inbox: Inbox) -> list[dict]:
    return [json.loads(body) for _, body in inbox.deliveries]


async def outcome(call: Awaitable[object]) -> str:
    """Describe how the SDK understands an answer."""
    try:
        await call
    except TooManyRequestsError as error:
        return f"429 {error.body['code']} retry-after {error.headers['retry-after']}"
    except ApiError as error:
        return "not JSON" if error.status_code == 200 else f"{error.status_code} {error.body['code']}"
    return "answered"


async def test_a_dropped_webhook_never_arrives(emulated: Start, inbox: Inbox):
    one = await emulated(drop=1.0)
    await one.subscribe(inbox, *WORKFLOW_EVENTS)
    await one.submit(20)
    await one.quiet()
    assert inbox.deliveries == []
    assert {tuple(line["webhooks"].items()) for line in await one.truth()} == {
        (("events", 3), ("delivered", 0), ("dropped", 3))
    }
    assert (await one.stats())["webhooks"]["dropped"] == 60


async def test_each_webhook_arrives_once_more_for_each_copy(emulated: Start, inbox: Inbox):
    one = await emulated(copies=3)
    await one.subscribe(inbox)
    await one.submit(5)
    await one.quiet()
    seen = Counter(json.loads(body)["eventId"] for _, body in inbox.deliveries)
    assert list(seen.values()) == [4] * 5


async def test_faults_can_be_changed_while_the_emulator_runs(emulated: Start, inbox: Inbox):
    one = await emulated(drop=1.0)
    await one.subscribe(inbox)
    await one.submit(3)
    await one.quiet()
    assert inbox.deliveries == []
    changed = await one.http.put("/_emulator/faults", json={"faults": "duplicate=1"})
    assert (changed.status_code, changed.json()) == (200, {"faults": {"duplicate": 1.0}})
    await one.submit(3)
    await one.quiet()
    assert len(inbox.deliveries) == 6
    for wrong in ({"faults": "dropp=1"}, {"faults": 3}, {}, []):
        refused = await one.http.put("/_emulator/faults", json=wrong)
        assert (refused.status_code, "faults" in refused.text or wrong == []) == (400, True)


async def test_a_duplicate_has_the_same_event_id(emulated: Start, inbox: Inbox):
    one = await emulated(duplicate=1.0)
    await one.subscribe(inbox)
    await one.submit(10)
    await eventually(lambda: len(inbox.deliveries) == 20, "everything came twice")
    assert set(Counter(event["eventId"] for event in events(inbox)).values()) == {2}
    await one.quiet()
    assert sum(line["webhooks"]["delivered"] for line in await one.truth()) == 10


async def test_a_corrupt_webhook_is_right_at_the_second_attempt(emulated: Start, inbox: Inbox):
    one = await emulated(corrupt=1.0)
    secret = await one.subscribe(inbox)
    seen: list[bool] = []

    def judge(head: dict[str, str], body: bytes) -> int:
        try:
            Webhooks().verify_and_parse(body.decode(), head, secret)
        except WebhookSignatureVerificationError:
            seen.append(False)
            return 401
        seen.append(True)
        return 200

    inbox.judge = judge
    await one.submit(5)
    await one.quiet()
    assert Counter(seen) == {False: 5, True: 5}
    assert sum(line["webhooks"]["delivered"] for line in await one.truth()) == 5


async def test_a_late_webhook_arrives_after_the_retry_window(emulated: Start, inbox: Inbox):
    first_retry = 0.03
    one = await emulated(late=1.0, first_retry=first_retry)
    secret = await one.subscribe(inbox)
    begun = time.monotonic()
    await one.submit(1)
    await eventually(lambda: inbox.deliveries, "it came at last")
    assert time.monotonic() - begun >= sum(first_retry * 2**n for n in range(5))
    head, body = inbox.deliveries[0]
    Webhooks().verify_and_parse(body.decode(), head, secret)


async def test_reordered_webhooks_are_overtaken(emulated: Start, inbox: Inbox):
    one = await emulated(reorder=0.5)
    await one.subscribe(inbox)
    await one.submit(40)
    await eventually(lambda: len(inbox.deliveries) == 40, "every webhook came")
    ends = [event["payload"]["endTime"] for event in events(inbox)]
    assert sum(later < earlier for earlier, later in pairwise(ends)) >= 5


async def test_an_expired_link_answers_403(emulated: Start, inbox: Inbox):
    one = await emulated(url_expired=1.0)
    secret = await one.subscribe(inbox, format="url")
    await one.submit(1)
    await eventually(lambda: inbox.deliveries, "the link came")
    head, body = inbox.deliveries[0]
    event = Webhooks().verify_and_parse(body.decode(), head, secret, allow_signed_url=True)
    with pytest.raises(WebhookPayloadFetchError):
        await Webhooks().fetch_signed_payload(event)


@pytest.mark.parametrize(("skew", "why"), [(-400, "too old"), (120, "in the future")])
async def test_a_skewed_clock_makes_webhooks_stale(emulated: Start, inbox: Inbox, skew: int, why: str):
    one = await emulated(skew=skew)
    secret = await one.subscribe(inbox)
    await one.submit(1)
    await eventually(lambda: inbox.deliveries, "it came")
    head, body = inbox.deliveries[0]
    with pytest.raises(WebhookSignatureVerificationError, match=why):
        Webhooks().verify_and_parse(body.decode(), head, secret)


async def test_a_skewed_clock_dates_runs_and_answers(emulated: Start, inbox: Inbox):
    one = await emulated(skew=-600)
    await one.subscribe(inbox)
    batch_id = await one.submit(1)
    await eventually(lambda: inbox.deliveries, "it came")
    answer = await one.http.get("/workflow_runs", params={"batchId": batch_id})
    now = parsedate_to_datetime(answer.headers["date"])
    (run,) = answer.json()["data"]
    sent = json.loads(inbox.deliveries[0][1])["payload"]
    for moment in (run["createdAt"], run["updatedAt"], run["startTime"], run["endTime"], sent["endTime"]):
        assert timedelta(seconds=-1) < now - datetime.fromisoformat(moment) < timedelta(seconds=60)
    assert timedelta(seconds=590) < datetime.now(UTC) - now < timedelta(seconds=660)


async def test_a_refused_batch_leaves_nothing_behind(emulated: Start):
    one = await emulated(submit_429=0.3, submit_5xx=0.3, garbage=0.3)
    outcomes = Counter([await outcome(one.submit(1)) for _ in range(40)])
    assert set(outcomes) == {"answered", "429 RATE_LIMIT_EXCEEDED retry-after 1", "503 INTERNAL_ERROR", "not JSON"}
    stats = await one.stats()
    assert stats["batches"] == stats["runs"] == outcomes["answered"]
    assert stats["requests"]["run"] == 40
    assert stats["refused"] == {
        "429": outcomes["429 RATE_LIMIT_EXCEEDED retry-after 1"],
        "503": outcomes["503 INTERNAL_ERROR"],
    }


async def test_cancellations_fail_at_the_given_rates_and_then_change_nothing(emulated: Start):
    one = await emulated(write_429=0.3, write_5xx=0.3)
    await one.submit(1)
    (run,) = (await one.http.get("/workflow_runs")).json()["data"]
    answers = [await one.http.post(f"/workflow_runs/{run['id']}/cancel") for _ in range(40)]
    failed = Counter(answer.status_code for answer in answers)
    assert set(failed) >= {429, 500}
    first = next((n for n, answer in enumerate(answers) if answer.status_code == 200), None)
    assert all(answer.status_code in (429, 500) for answer in answers[:first])


async def test_a_batch_that_is_accepted_but_never_answered_exists(emulated: Start, inbox: Inbox):
    one = await emulated(accept_then_timeout=1.0)
    await one.subscribe(inbox)
    body = {"workflow": {"id": WORKFLOW}, "inputs": inputs(3)}
    with pytest.raises(httpx.ReadTimeout):
        await one.http.post("/workflow_runs/batch", json=body, timeout=0.3)
    await eventually(lambda: len(inbox.deliveries) == 3, "its webhooks come")
    (batch,) = [json.loads(line) for line in (await one.http.get("/_emulator/batches")).text.splitlines()]
    assert (batch["runs"], batch["answered"]) == (3, False)
    assert {event["payload"]["batchId"] for event in events(inbox)} == {batch["batch_id"]}


async def test_gets_fail_at_the_given_rates(emulated: Start):
    one = await emulated(get_429=0.3, get_5xx=0.3, garbage=0.2, slow=0.02)
    lists = one.sdk.workflow_runs.list
    outcomes = {await outcome(lists(request_options={"max_retries": 0})) for _ in range(60)}
    assert outcomes == {
        "answered",
        "429 RATE_LIMIT_EXCEEDED retry-after 1",
        "500 INTERNAL_ERROR",
        "not JSON",
    }


async def test_with_list_lag_a_batch_is_listed_in_parts(emulated: Start):
    one = await emulated(list_lag=1.0)
    batch_id = await one.submit(60)
    seen: list[int] = []

    async def whole() -> bool:
        page = await one.sdk.workflow_runs.list(batch_id=batch_id, max_page_size=1000)
        seen.append(len(page.data))
        return seen[-1] == 60

    await eventually(whole, "the whole batch is listed")
    assert any(0 < count < 60 for count in seen), seen
    assert seen == sorted(seen)


async def test_a_delay_holds_webhooks_back(emulated: Start, inbox: Inbox):
    one = await emulated(delay=1.0)
    await one.subscribe(inbox)
    await one.submit(20)
    await one.all_ended()
    assert len(inbox.deliveries) < 20
    await eventually(lambda: len(inbox.deliveries) == 20, "every webhook came")


async def test_a_review_ends_in_approval_or_rejection(emulated: Start, inbox: Inbox):
    one = await emulated(review=1.0, first_retry=0.3)
    inbox.status = 500
    await one.subscribe(inbox)
    await one.submit(2)
    await one.all_ended()
    first, second = (line["run_id"] for line in await one.truth())
    assert {line["status"] for line in await one.truth()} == {"NEEDS_REVIEW"}
    await eventually(lambda: len(inbox.deliveries) >= 2, "both were tried")
    assert (await one.act(first, "review_approve")).json()["status"] == "PROCESSED"
    assert (await one.act(second, "review_reject")).json()["rejectionNote"]
    assert (await one.act(second, "review_approve")).status_code == 409
    inbox.deliveries.clear()
    inbox.status = 200
    await eventually(lambda: len(inbox.deliveries) == 4, "both events of both runs came")
    shown = {(event["eventType"], event["payload"]["status"], event["payload"]["reviewed"]) for event in events(inbox)}
    assert shown == {
        ("workflow_run.needs_review", "NEEDS_REVIEW", False),
        ("workflow_run.completed", "PROCESSED", True),
        ("workflow_run.rejected", "REJECTED", True),
    }


async def test_a_failed_run_can_be_rerun(emulated: Start, inbox: Inbox):
    one = await emulated(fail=1.0)
    await one.subscribe(inbox, format="url")
    await one.submit(1)
    await one.quiet()
    (line,) = await one.truth()
    assert (line["status"], bool(line["failure_reason"])) == ("FAILED", True)
    assert (await one.act(line["run_id"], "rerun")).json()["status"] == "PROCESSING"
    await one.quiet()
    (line,) = await one.truth()
    assert (line["status"], line["failure_reason"], line["webhooks"]["delivered"]) == ("PROCESSED", None, 2)
    failed, completed = events(inbox)
    assert (failed["eventType"], completed["eventType"]) == ("workflow_run.failed", "workflow_run.completed")
    assert failed["eventId"] != completed["eventId"]
    before, after = [(await one.http.get(event["payload"]["data"])).json() for event in (failed, completed)]
    assert (before["status"], after["status"]) == ("FAILED", "PROCESSED")
    assert before["endTime"] < after["endTime"]
    assert isinstance(WorkflowRun.model_validate(before), WorkflowRun)


async def test_a_deleted_run_is_not_found_but_is_in_the_truth(emulated: Start, inbox: Inbox):
    one = await emulated()
    await one.subscribe(inbox)
    await one.submit(1)
    await one.quiet()
    (line,) = await one.truth()
    await one.act(line["run_id"], "delete")
    assert (await one.http.get(f"/workflow_runs/{line['run_id']}")).status_code == 404
    (line,) = await one.truth()
    assert line["deleted"]
    assert len(inbox.deliveries) == 1


async def test_steps_are_announced_to_their_subscribers(emulated: Start, inbox: Inbox):
    one = await emulated()
    secret = await one.subscribe(inbox, "workflow_run.step_run.processed")
    await one.submit(1)
    await one.quiet()
    assert {event["payload"]["stepType"] for event in events(inbox)} == {"PARSE", "EXTRACT"}
    for head, body in inbox.deliveries:
        assert head["x-mine"] == "yes"
        event = Webhooks().verify_and_parse(body.decode(), head, secret)
        assert event.payload.workflow_run_id
        assert "batchId" not in json.loads(body)["payload"]


async def test_the_same_seed_gives_the_same_faults(emulated: Start, inbox: Inbox):
    outcomes = []
    for attempt, seed in enumerate((5, 5, 6)):
        one = await emulated(seed=seed, folder=f"state{attempt}", drop=0.3, duplicate=0.3, fail=0.3)
        await one.subscribe(inbox)
        inbox.deliveries.clear()
        await one.submit(60)
        await one.quiet()
        truth = [(line["run_id"], line["status"], line["webhooks"]["dropped"]) for line in await one.truth()]
        outcomes.append((truth, sorted(event["eventId"] for event in events(inbox))))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0] != outcomes[2]
    assert 0 < sum(dropped for _, _, dropped in outcomes[0][0]) < 60
