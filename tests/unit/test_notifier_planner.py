"""Each receiver gets the events that it subscribed to, from the place in the log where it was added."""

from __future__ import annotations

from everyrun.log import events
from everyrun.log.cloudevents import record
from everyrun.log.reading import LogRecord
from everyrun.notifier.planner import Subscriber, first_needed, plan
from tests.unit.test_notifier_notifications import TIME, Read, polled, run, webhook

ALL = ["workflow_run.completed", "workflow_run.failed"]


def subscriber(name: str, **starts: int) -> Subscriber:
    places = {("runs", int(partition[1:])): offset for partition, offset in starts.items()}
    return Subscriber(name, "extend", ALL, [], places)


def at(found: LogRecord, offset: int, partition: int = 0) -> LogRecord:
    return Read("runs", found.key or b"", found.value or b"", list(found.headers), partition, offset)


def test_a_receiver_gets_only_events_that_were_written_after_it_was_added() -> None:
    records = [("runs", at(polled(run(id=f"run_{offset}")), offset)) for offset in range(10, 14)]
    planned = plan(records, [subscriber("early", p0=11), subscriber("late", p0=13), subscriber("later", p0=14)])
    got = [(one.receiver_id, planned.notifications[one.notification_id].subject) for one in planned.deliveries]
    assert got == [("early", "run_11"), ("early", "run_12"), ("early", "run_13"), ("late", "run_13")]
    assert {made.subject for made in planned.notifications.values()} == {"run_11", "run_12", "run_13"}


def test_an_event_is_stored_once_with_the_body_that_came_first() -> None:
    records = [("runs", at(webhook(run()), 1)), ("runs", at(polled(run()), 2))]
    planned = plan(records, [subscriber("a"), subscriber("b")])
    (made,) = planned.notifications.values()
    assert b'"eventId":"event_a"' in made.body
    assert {one.receiver_id for one in planned.deliveries} == {"a", "b"}


def test_a_receiver_gets_only_its_format_its_events_and_its_workflows() -> None:
    failed = run("FAILED", id="run_2")
    elsewhere = run(id="run_3", workflow={"id": "workflow_b"})
    paused = events.WorkflowPaused(workflow_id="workflow_a", reason="402", by=None)
    written = record("batches", paused, key="workflow_a", id="1", source="/t", time=TIME)
    records = [("runs", at(polled(one), number)) for number, one in enumerate((run(id="run_1"), failed, elsewhere))]
    records.append(("batches", Read("batches", written.key, written.value, written.headers)))
    receivers = [
        Subscriber("failed", "extend", ["workflow_run.failed"], [], {}),
        Subscriber("a", "extend", ALL, ["workflow_a"], {}),
        Subscriber("own", "everyrun", ["workflow-paused"], [], {}),
    ]
    planned = plan(records, receivers)
    got = {(one.receiver_id, planned.notifications[one.notification_id].subject) for one in planned.deliveries}
    assert got == {("failed", "run_2"), ("a", "run_1"), ("a", "run_2"), ("own", "workflow_a")}


def test_reading_continues_where_it_ended_or_where_the_first_receiver_starts() -> None:
    receivers = [subscriber("a", p0=5, p1=8), subscriber("b", p0=9)]
    assert first_needed(("runs", 0), 7, receivers) == 7
    assert first_needed(("runs", 0), 2, receivers) == 5
    # No start is known for a partition that was added to the topic later: the receiver gets all of it.
    assert first_needed(("runs", 1), 0, receivers) == 0
    assert first_needed(("runs", 1), 3, [receivers[0]]) == 8
