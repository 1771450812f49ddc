"""Topics of an installation, judged by their names."""

from __future__ import annotations

import pytest

from everyrun.replay.export.foreign_topics import sibling_prefix


@pytest.mark.parametrize(
    ("topic", "there", "prefix"),
    [
        ("b.runs", {"b.runs", "b.batches", "b.deliveries", "b.results", "b.reports", "b.quarantine"}, "b."),
        ("runs", {"runs", "batches", "deliveries", "results", "reports", "quarantine"}, ""),
        ("b.runs", {"b.runs", "b.batches", "c.deliveries"}, None),
        ("audit", {"audit", "b.runs", "b.batches", "b.deliveries", "b.results", "b.reports", "b.quarantine"}, None),
    ],
)
def test_a_topic_belongs_to_an_installation_if_all_its_topics_exist(
    topic: str, there: set[str], prefix: str | None
) -> None:
    assert sibling_prefix(topic, there) == prefix
