"""Lines of a library that repeat while Kafka is unavailable are limited; ours are not."""

from __future__ import annotations

import logging

from everyrun.telemetry import OnceInAWhile


def line(name: str, node: int, level: int = logging.ERROR) -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 0, "Unable connect to node with id %s", (node,), None)


def test_repeated_lines_of_kafkas_client_pass_once_in_a_while() -> None:
    now = [0.0]
    limit = OnceInAWhile(("aiokafka",), 30.0, lambda: now[0])
    assert [limit.filter(line("aiokafka.client", node)) for node in range(50)] == [True] + [False] * 49
    assert limit.filter(line("aiokafka.client", 1, logging.WARNING))
    assert all(limit.filter(line("everyrun.bridge", node)) for node in range(3))
    now[0] = 31.0
    again = line("aiokafka.client", 7)
    assert limit.filter(again)
    assert again.getMessage() == "Unable connect to node with id 7 (49 more such lines were left out)"


def test_kinds_of_lines_that_no_longer_come_are_forgotten() -> None:
    now = [0.0]
    limit = OnceInAWhile(("aiokafka",), 30.0, lambda: now[0])
    for number in range(10_000):
        now[0] += 1.0
        record = line("aiokafka.client", 1)
        record.msg, record.args = f"correlation {number} is unknown", None
        assert limit.filter(record)
    assert len(limit._seen) <= 256
