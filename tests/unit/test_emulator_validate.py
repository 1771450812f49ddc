"""The emulator accepts and refuses the same requests as Extend."""

from __future__ import annotations

import pytest

from everyrun.emulator.validate import (
    MAX_METADATA,
    ApiProblem,
    check_endpoint,
    check_events,
    clean_metadata,
    read_inputs,
    read_package,
    read_priority,
    read_reference,
)

URL = {"file": {"url": "https://files.example.com/1.pdf"}}
UPLOADED = {"file_1": "a.pdf"}.get
ENDPOINT = {"url": "https://example.com/hook", "name": "x", "enabledEvents": [], "apiVersion": "2026-02-09"}


def batch(*inputs: object) -> dict:
    return {"inputs": list(inputs)}


def test_the_three_kinds_of_file_are_accepted():
    taken = read_inputs(
        batch(
            {**URL, "metadata": {"row": 1}, "secrets": {"k": "v"}, "unknown": 1},
            {"file": {"id": "file_1"}},
            {"file": {"text": "hello", "name": "a.txt"}, "metadata": None},
        ),
        UPLOADED,
    )
    assert taken == [
        (b'{"url":"https://files.example.com/1.pdf"}', b'{"row":1}'),
        (b'{"id":"file_1","name":"a.pdf"}', b"{}"),
        (b'{"text":"hello","name":"a.txt"}', b"{}"),
    ]


@pytest.mark.parametrize(
    "given",
    [
        {"metadata": {}},
        {"file": "https://files.example.com/1.pdf"},
        {"file": {}},
        {"file": {"base64": "AAAA"}},
        {"file": {"url": "https://a.example/1.pdf", "id": "file_1"}},
        {"file": {"url": "ftp://a.example/1.pdf"}},
        {"file": {"url": "https://a.example/with space.pdf"}},
        {"file": {"url": 5}},
        {"file": {"url": "https://a.example/1.pdf", "name": 5}},
        {"file": {"url": "https://a.example/1.pdf", "settings": "x"}},
        {"file": {"id": "file_unknown"}},
        {**URL, "metadata": []},
        {**URL, "metadata": {"extend:usage_tags": "prod"}},
        {**URL, "metadata": {"extend:usage_tags": [1]}},
        {**URL, "secrets": "x"},
        "https://a.example/1.pdf",
    ],
)
def test_one_wrong_input_refuses_the_batch_and_is_named(given: object):
    with pytest.raises(ApiProblem, match=r"inputs\[1\]") as raised:
        read_inputs(batch(URL, given), UPLOADED)
    assert raised.value.status == 400


@pytest.mark.parametrize("body", [{}, {"inputs": []}, {"inputs": {}}, batch(*[URL] * 1001)])
def test_a_batch_has_1_to_1000_inputs(body: dict):
    with pytest.raises(ApiProblem, match="inputs: ") as raised:
        read_inputs(body, {}.get)
    assert (raised.value.status, raised.value.code) == (400, "INVALID_REQUEST")
    assert len(read_inputs(batch(*[URL] * 1000), {}.get)) == 1000


def test_metadata_size_is_counted_in_bytes_of_compact_json():
    room = MAX_METADATA - len('{"k":""}')
    assert clean_metadata("m", {"k": "x" * room})
    assert clean_metadata("m", {"k": "é" * (room // 2)})
    for value in ("x" * (room + 1), "é" * (room // 2 + 1)):
        with pytest.raises(ApiProblem, match="10 KB"):
            clean_metadata("m", {"k": value})


def test_usage_tags_keep_only_allowed_characters():
    given = {"a": 1, "extend:usage_tags": ["prod", "team a!", "é-_9", ""]}
    assert clean_metadata("m", given) == {"a": 1, "extend:usage_tags": ["prod", "teama", "-_9", ""]}
    assert given["extend:usage_tags"][1] == "team a!"


def test_a_priority_is_1_to_100():
    assert [read_priority(given, 90) for given in (None, 1, 100)] == [90, 1, 100]
    for wrong in (0, 101, 1.0, True, "5", []):
        with pytest.raises(ApiProblem, match="priority"):
            read_priority(wrong, 90)


def test_the_workflow_reference_is_checked():
    assert read_reference({"workflow": {"id": "w"}}) == ("w", None)
    assert read_reference({"workflow": {"id": "w", "version": "draft"}}) == ("w", "draft")
    for wrong in ({}, [], None, {"workflow": "w"}, {"workflow": {"id": 1}}, {"workflow": {"id": "w", "version": 3}}):
        with pytest.raises(ApiProblem, match="workflow"):
            read_reference(wrong)


def test_a_package_has_2_to_50_files_each_once():
    urls = [{"url": f"https://a.example/{n}.pdf"} for n in range(51)]
    assert len(read_package({"files": [*urls[:2], {"id": "file_1"}]}, UPLOADED)["package"]) == 3
    for wrong in (None, [], {"files": urls[:1]}, {"files": urls}, {"files": [urls[0], urls[0]]},
                  {"files": [urls[0], {"text": "x"}]}):  # fmt: skip
        with pytest.raises(ApiProblem, match="package"):
            read_package(wrong, UPLOADED)


def test_run_events_are_only_for_subscriptions():
    assert check_events("e", ["workflow_run.completed"], workflow=True)
    assert check_events("e", ["workflow.deployed", "extract_run.failed"], workflow=False)
    for names, workflow in ((["workflow_run.completed"], False), (["workflow.deployed"], True), (["x"], False),
                            ("workflow.deployed", False), ([1], True)):  # fmt: skip
        with pytest.raises(ApiProblem, match="e: "):
            check_events("e", names, workflow=workflow)


@pytest.mark.parametrize(
    "change",
    [
        {"url": "example.com"},
        {"url": None},
        {"name": ""},
        {"enabledEvents": None},
        {"apiVersion": "2025-04-21"},
        {"status": "off"},
        {"unknown": 1},
        {"advancedOptions": []},
        {"advancedOptions": {"retries": 3}},
        {"advancedOptions": {"headers": {"a": 1}}},
        {"advancedOptions": {"payload": {"format": "xml"}}},
        {"advancedOptions": {"payload": {"format": "url", "urlThresholdBytes": -1}}},
        {"advancedOptions": {"payload": {"format": "url", "urlThresholdBytes": "1"}}},
    ],
)
def test_a_wrong_endpoint_is_refused(change: dict):
    with pytest.raises(ApiProblem) as raised:
        check_endpoint({**ENDPOINT, **change}, create=True)
    assert raised.value.status == 400
    assert next(iter(change)) in raised.value.message


def test_creating_an_endpoint_needs_four_fields_and_updating_none():
    options = {"headers": {"a": "b"}, "payload": {"format": "url", "urlThresholdBytes": 0}}
    assert check_endpoint({**ENDPOINT, "advancedOptions": options}, create=True)
    assert check_endpoint({}, create=False) == {}
    for key in ENDPOINT:
        with pytest.raises(ApiProblem, match=f"{key}: is required"):
            check_endpoint({k: v for k, v in ENDPOINT.items() if k != key}, create=True)
