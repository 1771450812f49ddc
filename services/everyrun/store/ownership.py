"""Declare which part of the code writes each table, and which parts read it.

Services exchange events through Kafka, and they also share a database. Each table has one owner. Only the owner changes
its rows, except for the other writers that are listed with a reason. A part may read a table only if it is listed as a
reader. A reader must cope with rows that are a moment old, because the result tables lag a moment behind the log and
behind the queue.

A test compares this list with every statement in the code. docs/reference/ownership.md is generated from it.
"""

from __future__ import annotations

from typing import NamedTuple

#: For each part of the code: the processes that run it.
PARTS = {
    "submission": "the submission service",
    "projection": "the processor; replay, for tables in schemas of its own",
    "processor": "the processor",
    "reconciler": "the reconciler",
    "query": "the query service",
    "replay": "the replay service, and the commands that read the log",
    "notifier": "the notifier",
    "extend": "submission and reconciler, which share Extend's rate limit",
    "store": "every HTTP service, to check tokens; `everyrun token`",
    "doctor": "`everyrun doctor`",
    "cli": "`everyrun demo`",
}


class Table(NamedTuple):
    """The parts of the code that use a table, a view or a function."""

    #: The part whose statements change the table. For a view or a function: the part whose migration defines it.
    owner: str
    #: Other parts that read it.
    readers: tuple[str, ...] = ()
    #: Other parts that write it, each with the reason.
    other_writers: tuple[tuple[str, str], ...] = ()


_DOCTOR = (("doctor", "tries a write and rolls it back"),)

#: Every table, view and function that is named by statements outside of migrations.
TABLES = {
    # The result tables: a projection of the log.
    "everyrun.applied_offsets": Table("projection", ("processor", "submission", "replay", "doctor"), _DOCTOR),
    "everyrun.submissions": Table("projection", ("reconciler", "query", "replay")),
    "everyrun.batches": Table("projection", ("submission", "reconciler", "query", "replay", "doctor")),
    "everyrun.results": Table("projection", ("submission", "reconciler", "query", "replay", "cli")),
    "everyrun.other_runs": Table("projection", ("submission", "reconciler", "query", "cli")),
    "everyrun.unmatched_runs": Table("projection", ("submission", "reconciler", "query", "replay")),
    "everyrun.deliveries": Table("projection", ("submission", "query")),
    "everyrun.quarantine": Table("projection", ("submission", "query", "cli")),
    "everyrun.decisions": Table("projection", ("submission", "query")),
    "everyrun.submission_counts": Table("projection", ("replay",)),
    "everyrun.report": Table("projection", ("query", "replay")),
    "everyrun.flat_results": Table("projection", ("query",)),
    "everyrun.extractions": Table("projection", ("query",)),
    # The queue: what is still to be sent.
    "everyrun_queue.installation": Table(
        "submission",
        ("reconciler", "extend"),
        (("extend", "binds the queue to the first Extend that it is started with"), *_DOCTOR),
    ),
    "everyrun_queue.submissions": Table("submission", ("reconciler", "query", "replay", "doctor")),
    "everyrun_queue.inputs": Table("submission", ("query", "replay")),
    "everyrun_queue.rules": Table("submission", ("query",)),
    "everyrun_queue.retries": Table("submission", ("query",)),
    "everyrun_queue.chunks": Table("submission", ("reconciler", "query", "doctor")),
    "everyrun_queue.synced_objects": Table("submission"),
    "everyrun_queue.adopted": Table("submission"),
    "everyrun_queue.dropin_batches": Table("submission"),
    "everyrun_queue.deleted_runs": Table("submission"),
    "everyrun_queue.paused": Table("submission"),
    "everyrun_queue.cancellations": Table("submission"),
    "everyrun_queue.cancelled_runs": Table("submission"),
    "everyrun_queue.log_position": Table("submission"),
    "everyrun_queue.token_recovery": Table("submission", ("store",)),
    "everyrun_queue.incarnation": Table("submission", ("store",)),
    "everyrun_queue.claim": Table("submission"),
    "everyrun_queue.is_untold": Table("submission"),
    "everyrun_queue.can_claim": Table("submission"),
    "everyrun_queue.count_settled": Table("submission"),
    "everyrun_queue.submission_loads": Table("submission", ("query",)),
    "everyrun_queue.workflow_loads": Table("submission", ("query",)),
    "everyrun_queue.settled_samples": Table("submission", ("query",)),
    "everyrun_queue.load_changes": Table("submission"),
    "everyrun_queue.lock_loads": Table("submission"),
    "everyrun_queue.update_loads": Table("submission"),
    "everyrun_queue.next_chunk": Table("submission"),
    "everyrun_queue.unsent": Table("submission", ("query", "replay", "doctor")),
    # Working state of other parts. It is in the queue's schema because, like the queue, it is not made from the log.
    "everyrun_queue.tokens": Table(
        "store", ("submission",), (("submission", "marks what it has announced in the log, and restores from it"),)
    ),
    "everyrun_queue.budgets": Table("extend", ("query",)),
    "everyrun_queue.sweeps": Table("reconciler", ("submission", "doctor")),
    "everyrun_queue.polls": Table("reconciler", ("query",)),
    "everyrun_queue.gone_runs": Table("reconciler", ("submission", "query")),
    "everyrun_queue.published_offsets": Table("processor"),
    "everyrun_queue.replay_jobs": Table("replay"),
    "everyrun_queue.receivers": Table("notifier", ("doctor",)),
    "everyrun_queue.receiver_changes": Table("notifier"),
    "everyrun_queue.receiver_starts": Table("notifier"),
    "everyrun_queue.notifier_positions": Table("notifier"),
    "everyrun_queue.notifications": Table("notifier"),
    "everyrun_queue.notification_deliveries": Table("notifier"),
    # The index of the log, by which the events in the history of an input are found. It is made from the log.
    "everyrun_index.positions": Table("replay"),
    "everyrun_index.places": Table("replay"),
    "everyrun_index.batch_places": Table("replay"),
}
