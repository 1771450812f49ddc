"""Decisions of people become rows that say what was decided about, by whom and why."""

from __future__ import annotations

from datetime import UTC, datetime

from everyrun.log import events
from everyrun.log.cloudevents import LoggedEvent
from everyrun.projection.rules.decisions import decision_of

AT = datetime(2026, 3, 1, 10, tzinfo=UTC)


def test_a_change_of_a_receiver_names_the_receiver_its_address_and_what_was_changed() -> None:
    added = events.ReceiverChanged(
        receiver_id="rcv_1",
        change="added",
        url="https://app.example.com/hooks",
        events=["workflow_run.failed", "workflow_run.completed"],
        workflows=[],
        changed_at="2026-03-01T10:00:00.000Z",
        by="sam (bootstrap)",
    )
    found = decision_of(LoggedEvent(added, AT, "rcv_1/chg_1"))
    assert (found.kind, found.source, found.decided_by, found.decided_at) == (
        "receiver-changed",
        "rcv_1",
        "sam (bootstrap)",
        AT,
    )
    gets = "which gets workflow_run.failed, workflow_run.completed"
    assert found.reason == f"added: the receiver https://app.example.com/hooks, {gets}"


def test_a_token_is_named_by_its_id() -> None:
    revoked = events.TokenRevoked("ert_1", "nightly", "2026-03-01T10:00:00.000Z", "sam", "left")
    found = decision_of(LoggedEvent(revoked, AT, "ert_1/token-revoked"))
    assert (found.source, found.reason) == ("ert_1", "the token for nightly: left")
