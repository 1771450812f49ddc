"""A subscription names events that exist, all of one format."""

from __future__ import annotations

import pytest

from everyrun.emulator.runs import EVENTS as OF_THE_EMULATOR
from everyrun.http import InvalidFieldError
from everyrun.log.events import TOPICS
from everyrun.notifier.catalog import EVENTS, OF_EVERYRUN, OF_STATUS, is_wanted, subscription

RUNS = list(EVENTS["extend"])


def test_a_pattern_stands_for_all_events_that_match() -> None:
    assert subscription(["workflow_run.*"]) == ("extend", RUNS)
    assert subscription(["workflow_run.failed", "workflow_run.c*"]) == (
        "extend",
        ["workflow_run.completed", "workflow_run.failed", "workflow_run.cancelled"],
    )
    assert subscription(["quarantined", "submission-settled"]) == ("everyrun", ["submission-settled", "quarantined"])


@pytest.mark.parametrize(
    ("events", "says"),
    [
        (
            ["workflow_run.step_run.processed"],
            "there is no event 'workflow_run.step_run.processed'; there are: ",
        ),
        (["workflow_run.failed", "quarantined"], "one receiver for each kind"),
        (["*"], "one receiver for each kind"),
        ([], "at least one"),
    ],
)
def test_a_wrong_subscription_is_refused_with_what_to_do(events: list[str], says: str) -> None:
    with pytest.raises(InvalidFieldError, match=r"^events: ") as caught:
        subscription(events)
    assert says in str(caught.value)


def test_the_events_are_those_that_extend_and_the_log_have() -> None:
    assert OF_STATUS == OF_THE_EMULATOR
    logged = {str(kind.__struct_config__.tag) for kinds in TOPICS.values() for kind in kinds}
    assert set(OF_EVERYRUN.values()) <= logged


def test_a_receiver_gets_its_events_of_its_workflows() -> None:
    assert is_wanted("workflow_run.failed", "w1", RUNS, [])
    assert is_wanted("workflow_run.failed", "w1", RUNS, ["w1", "w2"])
    assert not is_wanted("workflow_run.failed", "w3", RUNS, ["w1", "w2"])
    assert not is_wanted("workflow_run.failed", None, RUNS, ["w1"])
    assert not is_wanted("workflow_run.failed", "w1", ["workflow_run.completed"], [])


def test_a_run_event_that_extend_adds_later_goes_to_who_gets_all_of_them() -> None:
    assert is_wanted("workflow_run.archived", "w1", RUNS, [])
    assert not is_wanted("workflow_run.archived", "w1", RUNS[1:], [])
    assert not is_wanted("quarantined", None, RUNS, [])
