"""What the truth is compared with, and the requests it could have been known with."""

from __future__ import annotations

from everyrun.cli.emulator_check import least_requests


def line(batch_id: str, delivered: int) -> dict:
    return {"batch_id": batch_id, "webhooks": {"delivered": delivered}}


def test_what_webhooks_told_costs_a_call_a_batch():
    assert least_requests([line("a", 1), line("a", 2), line("b", 1)]) == {"run": 2, "get": 0}


def test_what_they_did_not_costs_a_get_each_and_a_page_a_batch():
    truth = [line("a", 0), line("a", 0), line("a", 1), line("b", 0), line("c", 1)]
    assert least_requests(truth) == {"run": 3, "get": 3 + 2}
