"""The declaration of the topics, and the differences that could lose data."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from everyrun.log.topics import Topic, compare, declared

DECLARED = {topic.name: topic for topic in declared()}


def live(**changed: Topic | None) -> dict[str, Topic]:
    """Return the declared topics, except for these changes."""
    return {name: topic for name, topic in {**DECLARED, **changed}.items() if topic is not None}


def with_setting(name: str, **settings: str | None) -> Topic:
    named = {key.replace("_", "."): value for key, value in settings.items()}
    config = {key: value for key, value in {**DECLARED[name].config, **named}.items() if value is not None}
    return replace(DECLARED[name], config=config)


def test_every_topic_is_declared_and_keeps_all_records() -> None:
    assert set(DECLARED) == {"batches", "runs", "deliveries", "results", "reports", "quarantine", "probes"}
    assert DECLARED["batches"].partitions == DECLARED["runs"].partitions
    for topic in DECLARED.values():
        assert topic.config["retention.ms"] == ("86400000" if topic.name == "probes" else "-1")
        assert topic.config["message.timestamp.type"] == "LogAppendTime"
        assert topic.config["cleanup.policy"] == ("compact" if topic.name == "results" else "delete")
    assert int(DECLARED["runs"].config["max.message.bytes"]) == 16 << 20


def test_declared_or_safer_settings_are_accepted() -> None:
    wider = with_setting("runs", max_message_bytes=str(32 << 20))
    more = replace(DECLARED["reports"], partitions=64)
    extra = with_setting("deliveries", segment_bytes="1")
    assert compare(declared(), live(runs=wider, reports=more, deliveries=extra)) == []


@pytest.mark.parametrize(
    ("topic", "settings", "says"),
    [
        ("batches", {"retention_ms": "604800000"}, "retention.ms is 604800000 instead of -1"),
        ("runs", {"retention_bytes": "1000"}, "retention.bytes is 1000 instead of -1"),
        ("runs", {"cleanup_policy": "compact"}, "cleanup.policy is compact instead of delete"),
        ("results", {"cleanup_policy": "delete"}, "cleanup.policy is delete instead of compact"),
        ("runs", {"max_message_bytes": "1048588"}, "max.message.bytes is 1048588 instead of 16777216"),
        ("runs", {"message_timestamp_type": "CreateTime"}, "message.timestamp.type is CreateTime"),
        ("batches", {"unclean_leader_election_enable": "true"}, "unclean.leader.election.enable is true"),
        ("batches", {"retention_ms": None}, "retention.ms is None"),
    ],
)
def test_a_setting_that_could_lose_data_is_named_with_its_remedy(
    topic: str, settings: dict[str, str | None], says: str
) -> None:
    (problem,) = compare(declared(), live(**{topic: with_setting(topic, **settings)}))
    assert problem.startswith(f"topic {topic}: {says}")
    (changed,) = settings
    name = changed.replace("_", ".")
    assert f"--add-config {name}={DECLARED[topic].config[name]}" in problem


def test_a_missing_topic_is_named() -> None:
    (problem,) = compare(declared(), live(deliveries=None), "everyrun.")
    assert problem.startswith("topic everyrun.deliveries is missing.")


def test_fewer_partitions_than_declared_are_named() -> None:
    (problem,) = compare(declared(), live(reports=replace(DECLARED["reports"], partitions=3)))
    assert "topic reports has 3 partitions instead of 8" in problem


def test_batches_and_runs_must_have_the_same_number_of_partitions() -> None:
    (problem,) = compare(declared(), live(runs=replace(DECLARED["runs"], partitions=12)))
    assert "batches has 8 partitions and runs has 12" in problem
