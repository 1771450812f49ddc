"""The drop-in endpoint: one batch for a repeated call, runs from the tables, and errors in Extend's form."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import pytest
from extend_ai import Extend

from everyrun.serve import http_server, respond
from everyrun.store.tokens import digest
from tests.conftest import eventually, free_port
from tests.contract.calls import headers, listed, sdk, settled
from tests.contract.conftest import KEY, WORKFLOW
from tests.integration.dropin import DropIn

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def dropin(kafka: str, postgres: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[DropIn]:
    """Everyrun in front of an emulator, with a second submission process that answers batches without waiting."""
    running = DropIn(tmp_path_factory.mktemp("dropin"), kafka, postgres, "--run-seconds", "0.05:0.2").run(tables=True)
    first = running.url
    running.add("submission", EVERYRUN_DROPIN_WAIT=0)
    running.until_ready()
    running.second, running.url = running.url, first
    yield running
    running.end()


@pytest.fixture
async def http(dropin: DropIn) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=dropin.url, headers=headers(), timeout=60) as client:
        yield client


def batch(name: str, count: int, **more: object) -> dict:
    """Return the body of a batch whose inputs no other test sends."""
    files = [
        {"file": {"url": f"https://files.example.com/{name}/{n}.pdf"}, "metadata": {"row": n, "name": name}}
        for n in range(count)
    ]
    return {"workflow": {"id": WORKFLOW}, "inputs": files, **more}


def runs_of(dropin: DropIn, name: str) -> list[dict]:
    """Return what the emulator knows of the runs that were made for a test."""
    return [line for line in dropin.truth() if line["metadata"].get("name") == name]


async def submissions_of(dropin: DropIn, name: str) -> list[str]:
    rows = await dropin.execute(
        "select distinct submission_id from everyrun_queue.inputs where strpos(file, $1) > 0", f"/{name}/"
    )
    return [row["submission_id"] for row in rows]


async def in_tables(dropin: DropIn, client: Extend, batch_id: str, count: int) -> list:
    """Wait until every run of a batch has ended and is in the tables."""
    runs = await settled(client, batch_id, count)

    async def stored() -> bool:
        ids = [run.id for run in runs]
        rows = await dropin.execute(
            "select count(*) from everyrun.results where run_id = any ($1::text[]) "
            "and status in ('PROCESSED', 'FAILED', 'NEEDS_REVIEW')",
            ids,
        )
        return rows[0][0] == count

    await eventually(stored, "the runs are in the tables", 60)
    return runs


async def test_the_sdks_retries_of_a_lost_answer_make_one_batch(dropin: DropIn) -> None:
    answers: list[bytes] = []

    async def losing(scope, receive, send) -> None:
        """Pass a request on, and lose the first two answers."""
        body = b""
        while (message := await receive()).get("more_body") or message.get("body"):
            body += message["body"]
            if not message.get("more_body"):
                break
        given = {name.decode(): value.decode() for name, value in scope["headers"] if name != b"host"}
        async with httpx.AsyncClient(timeout=60) as client:
            answer = await client.request(scope["method"], dropin.url + scope["path"], headers=given, content=body)
        answers.append(answer.content)
        if len(answers) < 3:
            await respond(send, 503, b"<html>bad gateway</html>", b"text/html")
        else:
            await respond(send, answer.status_code, answer.content)

    port = free_port()
    async with http_server(f"127.0.0.1:{port}", losing):
        client = Extend(token=KEY, base_url=f"http://127.0.0.1:{port}", timeout=60)
        body = batch("lost", 3)
        made = await asyncio.to_thread(client.workflow_runs.create_batch, **body)
    assert len(answers) == 3
    assert {json.loads(answer)["batchId"] for answer in answers} == {made.batch_id}
    assert len(await submissions_of(dropin, "lost")) == 1
    await settled(sdk(dropin.url), made.batch_id, 3)
    assert len(runs_of(dropin, "lost")) == 3


async def test_equal_calls_at_two_processes_at_once_make_one_batch(dropin: DropIn, http: httpx.AsyncClient) -> None:
    body = json.dumps(batch("twice", 20)).encode()
    calls = [
        http.post(f"{url}/workflow_runs/batch", content=body, headers=JSON)
        for _ in range(4)
        for url in (dropin.url, dropin.second)
    ]
    answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["batchId"] for answer in answers}) == 1
    assert len(await submissions_of(dropin, "twice")) == 1
    await settled(sdk(dropin.url), answers[0].json()["batchId"], 20)
    assert len(runs_of(dropin, "twice")) == 20


async def test_an_idempotency_key_of_the_caller_decides(dropin: DropIn, http: httpx.AsyncClient) -> None:
    async def post(name: str, key: str | None) -> httpx.Response:
        given = {} if key is None else {"idempotency-key": key}
        return await http.post("/workflow_runs/batch", json=batch(name, 1), headers=given)

    one, same, other = [(await post("keyed", key)).json()["batchId"] for key in ("k-1", "k-1", "k-2")]
    assert one == same != other
    conflict = await post("keyed-otherwise", "k-1")
    assert (conflict.status_code, conflict.json()["code"]) == (422, "IDEMPOTENCY_CONFLICT")
    assert len(await submissions_of(dropin, "keyed")) == 2
    assert await submissions_of(dropin, "keyed-otherwise") == []


async def test_a_batch_that_is_not_accepted_in_time_gets_an_id_that_lists_its_runs(dropin: DropIn) -> None:
    client = sdk(dropin.second)
    batch_id = client.workflow_runs.create_batch(**batch("quick", 12)).batch_id
    assert batch_id == "batch_" + (await submissions_of(dropin, "quick"))[0].removeprefix("sub_")
    assert batch_id not in {line["batch_id"] for line in dropin.truth()}
    runs = await in_tables(dropin, client, batch_id, 12)
    for by in ("updatedAt", "createdAt"):
        for direction in ("asc", "desc"):
            pages = listed(client, batch_id=batch_id, sort_by=by, sort_dir=direction, max_page_size=5)
            assert sorted(run.id for run in pages) == sorted(run.id for run in runs)
            times = [run.updated_at if by == "updatedAt" else run.created_at for run in pages]
            assert times == sorted(times, reverse=direction == "desc")
            assert {run.batch_id for run in pages} == {batch_id}
    whole = client.workflow_runs.retrieve(runs[0].id)
    assert whole.batch_id == batch_id
    assert set(whole.metadata) == {"row", "name"}
    assert listed(client, batch_id=batch_id, file_name_contains="no such name") == []
    assert listed(client, batch_id=batch_id, workflow_id="workflow_other") == []
    assert len(listed(client, batch_id=batch_id, status="PROCESSED")) + len(
        listed(client, batch_id=batch_id, status="NEEDS_REVIEW")
    ) == len(runs)
    everything = listed(client, max_page_size=100)
    assert {run.batch_id for run in everything if run.id in {one.id for one in runs}} == {batch_id}


async def test_runs_that_are_in_the_tables_cost_no_request(dropin: DropIn) -> None:
    client = sdk(dropin.url)
    batch_id = client.workflow_runs.create_batch(**batch("free", 30)).batch_id
    runs = await in_tables(dropin, client, batch_id, 30)

    async def told() -> bool:
        before = httpx.get(dropin.emulator.url + "/_emulator/stats").json()["requests"]
        listed(client, batch_id=batch_id, max_page_size=7)
        return httpx.get(dropin.emulator.url + "/_emulator/stats").json()["requests"] == before

    await eventually(told, "lists are answered from the tables")
    before = httpx.get(dropin.emulator.url + "/_emulator/stats").json()["requests"]
    for run in runs:
        whole = client.workflow_runs.retrieve(run.id)
        assert (whole.id, whole.batch_id, set(whole.metadata)) == (run.id, batch_id, {"row", "name"})
        assert len(whole.step_runs) == 2
    assert httpx.get(dropin.emulator.url + "/_emulator/stats").json()["requests"] == before


async def test_a_change_of_a_settled_run_is_seen_by_every_process(dropin: DropIn) -> None:
    client, other = sdk(dropin.url), sdk(dropin.second)
    batch_id = client.workflow_runs.create_batch(**batch("changed", 2)).batch_id
    first, second = [run.id for run in await in_tables(dropin, client, batch_id, 2)]
    assert client.workflow_runs.update(first, metadata={"checked": "yes"}).metadata["checked"] == "yes"
    assert client.workflow_runs.retrieve(first).metadata["checked"] == "yes"
    await eventually(
        lambda: other.workflow_runs.retrieve(first).metadata.get("checked") == "yes", "the tables have the change"
    )
    client.workflow_runs.delete(second)
    for one in (client, other):
        assert httpx.get(f"{dropin.second}/workflow_runs/{second}", headers=headers()).status_code == 404
        assert [run.id for run in listed(one, batch_id=batch_id)] == [first]


async def test_a_header_allows_more_than_1000_inputs(dropin: DropIn, http: httpx.AsyncClient) -> None:
    body = batch("many", 1001)
    refused = await http.post("/workflow_runs/batch", json=body)
    assert refused.status_code == 400
    assert "x-everyrun-max-inputs" in refused.json()["message"]
    made = await http.post("/workflow_runs/batch", json=body, headers={"x-everyrun-max-inputs": "5000"})
    runs = await settled(sdk(dropin.url), made.json()["batchId"], 1001)
    assert len({run.id for run in runs}) == 1001
    batches = {line["batch_id"] for line in dropin.truth() if line["run_id"] in {run.id for run in runs}}
    assert len(batches) == 2


async def test_a_refused_batch_is_refused_as_a_whole(dropin: DropIn, http: httpx.AsyncClient) -> None:
    body = batch("whole", 3)
    body["inputs"][1]["file"] = {"id": "file_unknown"}
    answers = [await http.post("/workflow_runs/batch", json=body) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [400, 400]
    assert "file_unknown" in answers[1].json()["message"]
    (submission,) = await submissions_of(dropin, "whole")
    await eventually(lambda: refused_inputs(dropin, submission, 3), "every input is refused")
    assert runs_of(dropin, "whole") == []


async def refused_inputs(dropin: DropIn, submission: str, count: int) -> bool:
    rows = await dropin.execute("select status from everyrun.results where submission_id = $1", submission)
    return [row["status"] for row in rows] == ["REFUSED"] * count


GOOD = json.dumps(batch("wrong", 1)).encode()
DEEP = b'{"workflow":{"id":"w"},"inputs":[{"file":{"url":"https://x.example/1"},"metadata":' + b'{"a":' * 100_000
WRONG = {
    "not JSON": (400, GOOD[:-5], {}),
    "deep": (400, DEEP + b"1" + b"}" * 100_000 + b"}]}", {}),
    "deep and unfinished": (400, DEEP, {}),
    "not UTF-8": (400, GOOD.replace(b"wrong", b"\xff\xfe"), {}),
    "a list": (400, b"[]", {}),
    "null": (400, b"null", {}),
    "empty": (400, b"", {}),
    "no workflow": (400, b'{"inputs":[]}', {}),
    "workflow as text": (400, b'{"workflow":"w","inputs":[]}', {}),
    "NUL in the workflow": (400, GOOD.replace(WORKFLOW.encode(), b"a\\u0000b"), {}),
    "NUL in metadata": (400, GOOD.replace(b'"row": 0', b'"row": "\\u0000"'), {}),
    "inputs as an object": (400, GOOD.replace(b"[", b"{").replace(b"]", b"}"), {}),
    "an input that is null": (400, b'{"workflow":{"id":"%s"},"inputs":[null]}' % WORKFLOW.encode(), {}),
    "two kinds of file": (400, GOOD.replace(b'"url":', b'"text": "x", "url":'), {}),
    "no file": (400, GOOD.replace(b'"file"', b'"fil"'), {}),
    "a reserved key": (400, GOOD.replace(b'"row"', b'"everyrun:input"'), {}),
    "a key twice": (400, GOOD.replace(b'{"row": 0', b'{"row": 1, "row": 0'), {}),
    "secrets": (400, GOOD.replace(b'"metadata"', b'"secrets": {"a": "b"}, "metadata"'), {}),
    "priority as text": (400, GOOD[:-1] + b', "priority": "1"}', {}),
    "priority as true": (400, GOOD[:-1] + b', "priority": true}', {}),
    "a form": (415, b"a=1", {"content-type": "application/x-www-form-urlencoded"}),
    "compressed": (415, GOOD, {"content-encoding": "gzip"}),
    "too many allowed": (400, GOOD, {"x-everyrun-max-inputs": "1000000000000"}),
    "an empty key": (400, GOOD, {"idempotency-key": ""}),
    "another version": (400, GOOD, {"x-extend-api-version": "2025-04-21"}),
    "too large": (413, b" " * (17 << 20), {}),
    "no token": (401, GOOD, {"authorization": ""}),
    "a wrong token": (401, GOOD, {"authorization": "Bearer sk_wrong"}),
    "another scheme": (401, GOOD, {"authorization": f"Basic {KEY}"}),
}


def is_extends(answer: httpx.Response) -> bool:
    """Return True if an error is in Extend's form (SDK 1.20.0, types/api_error.py)."""
    body = answer.json()
    return (
        all(isinstance(body[name], str) and body[name] for name in ("code", "message", "requestId"))
        and isinstance(body["retryable"], bool)
        and "Traceback" not in answer.text
    )


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_batch_is_refused_in_extends_form(dropin: DropIn, http: httpx.AsyncClient, name: str) -> None:
    status, body, more = WRONG[name]
    answer = await http.post("/workflow_runs/batch", content=body, headers={**JSON, **more})
    assert (answer.status_code, is_extends(answer)) == (status, True), answer.text
    assert await submissions_of(dropin, "wrong") == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/workflow_runs?batchId=a&batchId=b", 400),
        ("GET", "/workflow_runs?batchId=%00", 400),
        ("GET", "/workflow_runs?maxPageSize=0&batchId={batch}", 400),
        ("GET", "/workflow_runs?maxPageSize=x&batchId={batch}", 400),
        ("GET", "/workflow_runs?sortBy=name&batchId={batch}", 400),
        ("GET", "/workflow_runs?sortDir=up&batchId={batch}", 400),
        ("GET", "/workflow_runs?nextPageToken=x&batchId={batch}", 400),
        ("GET", "/workflow_runs?nextPageToken=eyJhIjoxfQ&batchId={batch}", 400),
        ("GET", "/workflow_runs/%00", 404),
        ("GET", "/workflow_runs/workflow_run_unknown", 404),
        ("GET", "/../_emulator/truth", 404),
        ("GET", "/%2e%2e/_emulator/truth", 404),
        ("GET", "//files.example.com/x", 404),
        ("GET", "/nothing/here", 404),
        ("PATCH", "/workflow_runs/batch", 404),
        ("DELETE", "/workflow_runs/workflow_run_unknown", 404),
        ("POST", "/workflow_runs/workflow_run_unknown/cancel", 404),
    ],
)
async def test_a_wrong_request_is_answered_in_extends_form(
    dropin: DropIn, http: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    made = await http.post("/workflow_runs/batch", json=batch("paths", 1))
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(dropin.url).port)
    lines = [f"{method} {path.format(batch=made.json()['batchId'])} HTTP/1.1", "host: x", "connection: close"]
    lines += [f"{name}: {value}" for name, value in headers().items()]
    # Written by hand, because a client would clean the path.
    writer.write("\r\n".join([*lines, "content-length: 0", "", ""]).encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert int(head.split()[1]) == status, (head, body)
    assert is_extends(httpx.Response(status, content=body))


@pytest.mark.parametrize("scope", ["read", "submit", "operate"])
async def test_each_request_needs_its_scope(dropin: DropIn, scope: str) -> None:
    token = f"ert_{scope}_secret"
    await dropin.execute(
        "insert into everyrun_queue.tokens (token_id, name, hash, scopes, created_at, created_by) "
        "values ($1, $2, $3, array[$2], now(), 'tests')",
        f"ert_{scope}",
        scope,
        digest(token),
    )
    requests = {
        "read": [("GET", "/workflows"), ("GET", "/workflow_runs"), ("GET", "/workflow_runs/x")],
        "submit": [("POST", "/workflow_runs/batch"), ("POST", "/workflow_runs"), ("POST", "/files/upload")],
        "operate": [
            ("POST", "/workflow_runs/x"),
            ("POST", "/workflow_runs/x/cancel"),
            ("DELETE", "/workflow_runs/x"),
            ("POST", "/webhook_endpoints"),
            ("DELETE", "/files/x"),
        ],
    }
    async with httpx.AsyncClient(base_url=dropin.url, headers=headers(token), timeout=60) as client:
        await eventually(lambda: accepted(client), "the token is known")
        for needed, calls in requests.items():
            for method, path in calls:
                answer = await client.request(method, path)
                assert (answer.status_code == 403) == (needed != scope), (method, path, answer.text)
                assert answer.status_code < 300 or is_extends(answer)


async def accepted(client: httpx.AsyncClient) -> bool:
    return (await client.get("/workflow_runs/x")).status_code != 401
