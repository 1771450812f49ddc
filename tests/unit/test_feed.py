"""The feed isolates records that cannot be stored."""

from __future__ import annotations

from everyrun.log.reading import Poll
from everyrun.projection.feed import halves
from tests.records import logged


def test_a_poll_that_cannot_be_stored_is_split_down_to_one_record() -> None:
    polls = [Poll("batches", 0, [logged("batches", 0, 0)]), Poll("runs", 0, [logged("runs", 0, n) for n in range(5)])]
    seen = []
    todo = [polls]
    while todo:
        group = todo.pop(0)
        parts = halves(group)
        if len(parts) == 1:
            seen += [(group[0].topic, r.offset) for r in group[0].records]
        else:
            todo = parts + todo
    assert seen == [("batches", 0), *(("runs", n) for n in range(5))]
