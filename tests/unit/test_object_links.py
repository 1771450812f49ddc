"""A batch call gets a fresh link for each object; objects that cannot be read harm no other input."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from everyrun.log.cloudevents import Record
from everyrun.objects import ObjectCredentialsError, ObjectDeniedError, ObjectStoreUnavailableError
from tests.unit.dispatch_fakes import CHUNK, Dispatch

A, B = "s3://invoices/in/a.pdf", "s3://invoices/in/b.pdf"


@pytest.fixture
def dispatch() -> Dispatch:
    """One chunk with two objects and a link."""
    dispatch = Dispatch()
    dispatch.queue.add(inputs=3)
    dispatch.queue.files = {1: {"object": A, "etag": "1"}, 2: {"object": B, "etag": "1", "name": "B.pdf"}}
    dispatch.buckets.objects = {A: "1", B: "1"}
    return dispatch


def files(dispatch: Dispatch) -> list[Any]:
    return [given["file"] for given in dispatch.extend.bodies[-1]["inputs"]]


def logged(records: list[Record]) -> str:
    return " ".join(str(record.value) for record in records)


async def test_extend_gets_links_and_the_log_gets_addresses(dispatch: Dispatch) -> None:
    await dispatch.dispatcher.send_one()
    assert files(dispatch) == [
        {"url": "https://store.example/in/a.pdf?signature=1&for=3600", "name": "a.pdf"},
        {"url": "https://store.example/in/b.pdf?signature=1&for=3600", "name": "B.pdf"},
        {"url": "https://e.com/3?signed"},
    ]
    assert A in logged(dispatch.log.records)
    assert "signature" not in logged(dispatch.log.records)
    assert "redacted" in logged(dispatch.log.records), "only the link of the third input is redacted"
    assert logged(dispatch.log.records).count("redacted") == len(dispatch.log.records)


async def test_a_chunk_that_is_sent_again_gets_fresh_links(dispatch: Dispatch) -> None:
    dispatch.extend.answer = httpx.ConnectError("refused")
    await dispatch.dispatcher.send_one()
    await dispatch.dispatcher.send_one()
    assert [given["file"]["url"][-20:] for body in dispatch.extend.bodies for given in body["inputs"][:1]] == [
        "?signature=1&for=3600"[-20:],
        "?signature=2&for=3600"[-20:],
    ]


@pytest.mark.parametrize(
    ("etag", "code"),
    [(None, "OBJECT_NOT_FOUND"), ("2", "OBJECT_CHANGED"), (ObjectDeniedError("403"), "OBJECT_DENIED")],
)
async def test_an_object_that_cannot_be_sent_is_cut_out_and_refused_alone(
    dispatch: Dispatch, etag: str | Exception | None, code: str
) -> None:
    if etag is None:
        del dispatch.buckets.objects[B]
    else:
        dispatch.buckets.objects[B] = etag
    while await dispatch.dispatcher.send_one():
        pass
    states = {name: row["state"] for name, row in dispatch.queue.chunks.items()}
    assert states == {
        CHUNK: "cut",
        f"{CHUNK}-1": "submitted",
        f"{CHUNK}-2": "refused",
        f"{CHUNK}-3": "submitted",
    }
    assert code in dispatch.queue.chunks[f"{CHUNK}-2"]["reason"]
    assert B in dispatch.queue.chunks[f"{CHUNK}-2"]["reason"] or etag is not None
    assert len(dispatch.extend.bodies) == 2, "Extend is called only for the good parts"
    assert dispatch.queue.paused == []
    assert "batch-in-doubt" not in dispatch.events()


@pytest.mark.parametrize(
    "error", [ObjectCredentialsError("s3://invoices: no credentials"), ObjectDeniedError("s3://invoices: 403")]
)
async def test_missing_credentials_pause_the_submission_and_refuse_nothing(
    dispatch: Dispatch, error: Exception
) -> None:
    dispatch.buckets.objects = {A: error, B: error}
    await dispatch.dispatcher.send_one()
    assert dispatch.queue.paused == [("submission", "sub_1")]
    assert dispatch.queue.state() == ("waiting", 1)
    assert str(error) in dispatch.queue.chunks[CHUNK]["reason"]
    assert "everyrun submission resume sub_1" in logged(dispatch.log.records)
    assert "Extend answered" not in logged(dispatch.log.records)
    assert sorted(dispatch.events()) == ["batch-requested", "batch-returned", "submission-paused"]
    assert "call" not in dispatch.journal


async def test_a_store_that_does_not_answer_delays_the_chunk_and_writes_no_event(dispatch: Dispatch) -> None:
    dispatch.buckets.objects[A] = ObjectStoreUnavailableError("s3://invoices: connection refused")
    await dispatch.dispatcher.send_one()
    assert dispatch.queue.state() == ("waiting", 1)
    assert dispatch.queue.chunks[CHUNK]["wait"] == 2
    assert "connection refused" in dispatch.queue.chunks[CHUNK]["reason"]
    assert dispatch.events() == []
    assert dispatch.extend.pauses == [], "other chunks are sent meanwhile"


async def test_an_object_that_may_have_been_sent_before_is_held_not_refused(dispatch: Dispatch) -> None:
    dispatch.queue.chunks[CHUNK].update(resends=1)
    del dispatch.buckets.objects[B]
    await dispatch.dispatcher.send_one()
    assert dispatch.queue.state() == ("held", 1)
