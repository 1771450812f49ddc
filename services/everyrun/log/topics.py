"""The topics: declared once in ``infra/kafka/topics.yaml``, created from it, compared with it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, KafkaTimeoutError, TopicAlreadyExistsError, for_code
from msgspec import Struct

from everyrun.errors import EveryrunError
from everyrun.health import Health
from everyrun.log.connection import connection
from everyrun.settings import Settings
from everyrun.telemetry import log

_log = log(__name__)

#: Kafka is looked at so often, and has so long for its answers, in seconds: one that is frozen (it accepts
#: connections and answers nothing) is found out within the sum of both.
_EVERY, _WITHIN = 4.0, 6.0


class TopicsError(EveryrunError):
    """The live topics differ from the declaration in a way that could lose data; says where and what to do."""


class Topic(Struct, frozen=True):
    """A topic: its short name, how many partitions, its settings as Kafka's text."""

    name: str
    partitions: int
    config: dict[str, str]


class LogIdentity(NamedTuple):
    """Identifies the log that tables are made from: the cluster, and the number of partitions that keys choose from.

    Under another number a key means another partition, and what belongs together would lie apart.
    """

    cluster_id: str
    partitions: int


def _declaration() -> Path:
    installed = Path(__file__).with_name("topics.yaml")
    return installed if installed.exists() else Path(__file__).resolve().parents[3] / "infra" / "kafka" / "topics.yaml"


def declared(path: Path | None = None) -> list[Topic]:
    """The topics as they are declared."""
    document: dict[str, Any] = yaml.safe_load((path or _declaration()).read_text())
    defaults = document["defaults"]
    topics = []
    for name, own in document["topics"].items():
        config = {**defaults["config"], **((own or {}).get("config") or {})}
        topics.append(Topic(name, (own or {}).get("partitions", defaults["partitions"]), config))
    return topics


def _loses(setting: str, wanted: str, live: str | None) -> bool:
    if live is None:
        return True
    if setting == "max.message.bytes":
        return int(live) < int(wanted)
    if setting in ("retention.ms", "retention.bytes") and wanted == "-1":
        return live != "-1"
    return live != wanted


def compare(wanted: list[Topic], live: Mapping[str, Topic], prefix: str = "") -> list[str]:
    """The differences that could lose or misplace data, a sentence each with what to do; empty where all is right."""
    return [f"{what}. {remedy}" for what, remedy in differences(wanted, live, prefix)]


def differences(wanted: list[Topic], live: Mapping[str, Topic], prefix: str = "") -> list[tuple[str, str]]:
    """The differences that could lose or misplace data: what it is, and what to do; empty where all is right.

    ``live`` is by short name; the sentences name the topics with the prefix.
    """
    problems = []
    for topic in wanted:
        name = prefix + topic.name
        found = live.get(topic.name)
        if found is None:
            problems.append((f"topic {name} is missing", "Create the topics: everyrun topics create."))
            continue
        if found.partitions < topic.partitions:
            what = f"topic {name} has {found.partitions} partitions, declared are {topic.partitions}"
            problems.append((what, "Add some before anything is written to it."))
        for setting, value in sorted(topic.config.items()):
            if _loses(setting, value, found.config.get(setting)):
                what = f"topic {name}: {setting} is {found.config.get(setting)}, declared is {value}"
                remedy = f"Set it with kafka-configs --alter --topic {name} --add-config {setting}={value}"
                problems.append((what, remedy))
    sides = [live[name].partitions for name in ("batches", "runs") if name in live]
    if len(set(sides)) > 1:
        what = (
            f"{prefix}batches has {sides[0]} partitions and {prefix}runs {sides[1]}: the two sides of a batch would "
            "not meet in one worker"
        )
        problems.append((what, "Give both the same number, before anything is written to them."))
    return problems


async def _admin(settings: Settings) -> AIOKafkaAdminClient:
    admin = AIOKafkaAdminClient(request_timeout_ms=10_000, **connection(settings))
    try:
        await admin.start()
    except BaseException:
        await admin.close()
        raise
    return admin


async def cluster_id(settings: Settings) -> str:
    """The id of the Kafka cluster. Raises aiokafka.errors.KafkaError."""
    admin = await _admin(settings)
    try:
        described = await admin.describe_cluster()
        return str(described["cluster_id"])
    finally:
        await admin.close()


async def identity(settings: Settings) -> LogIdentity:
    """Return the identity of the log; ``runs`` and ``batches`` have equally many partitions (see :func:`check`).

    Raises aiokafka.errors.KafkaError, UnknownTopicOrPartitionError if the topic ``runs`` does not exist.
    """
    admin = await _admin(settings)
    try:
        described = await admin.describe_cluster()
        (runs,) = await admin.describe_topics([settings.topic("runs")])
        if runs["error_code"]:
            raise for_code(runs["error_code"])(f"topic {settings.topic('runs')}")
        return LogIdentity(str(described["cluster_id"]), len(runs["partitions"]))
    finally:
        await admin.close()


async def create(settings: Settings) -> list[str]:
    """Create the topics that are missing; their short names. Kafka shows them all when it returns.

    Raises aiokafka.errors.KafkaError.
    """
    admin = await _admin(settings)
    try:
        there = set(await admin.list_topics())
        missing = [topic for topic in declared() if settings.topic(topic.name) not in there]
        if missing:
            extra = {"min.insync.replicas": "2"} if settings.kafka_replication >= 3 else {}
            answer = await admin.create_topics(
                [
                    NewTopic(
                        settings.topic(topic.name),
                        topic.partitions,
                        settings.kafka_replication,
                        topic_configs={**topic.config, **extra},
                    )
                    for topic in missing
                ],
                timeout_ms=20_000,
            )
            for name, code, *message in answer.topic_errors:
                if code not in (0, TopicAlreadyExistsError.errno):
                    raise for_code(code)(f"topic {name}: {message}")
            await _until_shown(admin, {settings.topic(topic.name) for topic in missing})
        return [topic.name for topic in missing]
    finally:
        await admin.close()


async def _until_shown(admin: AIOKafkaAdminClient, names: set[str]) -> None:
    """A topic is shown a moment after its creation is acknowledged."""
    for _ in range(100):
        shown = {topic["topic"] for topic in await admin.describe_topics(sorted(names)) if topic["error_code"] == 0}
        if shown == names and names <= set(await admin.list_topics()):
            return
        await asyncio.sleep(0.1)
    raise KafkaTimeoutError(f"topics {sorted(names)} were created and are not shown")


async def live(settings: Settings) -> dict[str, Topic]:
    """The topics as they are, of those declared, by short name. Raises aiokafka.errors.KafkaError."""
    admin = await _admin(settings)
    try:
        names = {settings.topic(topic.name): topic.name for topic in declared()}
        there = {name for name in await admin.list_topics() if name in names}
        if not there:
            return {}
        partitions = {t["topic"]: len(t["partitions"]) for t in await admin.describe_topics(sorted(there))}
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in sorted(there)]
        found = {}
        for answer in await admin.describe_configs(resources):
            for _code, _message, _kind, name, entries in answer.resources:
                config = {entry[0]: entry[1] for entry in entries}
                found[names[name]] = Topic(names[name], partitions[name], config)
        return found
    finally:
        await admin.close()


async def check(settings: Settings) -> None:
    """Raise TopicsError where a live topic differs from the declaration in a way that could lose data."""
    problems = compare(declared(), await live(settings), settings.topic_prefix)
    if problems:
        raise TopicsError("\n".join(problems))


async def keep_checking(settings: Settings, health: Health, every: float = _EVERY) -> None:
    """Compare again and again, for ever: readyz says so if Kafka is unavailable, or a topic is gone or changed."""
    while True:
        await _look(settings, health)
        await asyncio.sleep(every)


async def _look(settings: Settings, health: Health) -> bool:
    try:
        async with asyncio.timeout(_WITHIN):
            await check(settings)
    except TimeoutError:
        health.not_ready("kafka", f"no answer within {_WITHIN:g} s")
    except TopicsError as error:
        health.ready("kafka")
        health.not_ready("topics", str(error))
        _log.error("the topics are not as declared", problems=str(error))
    except (KafkaError, OSError) as error:
        health.not_ready("kafka", f"{type(error).__name__}: {error}")
    else:
        health.ready("topics")
        health.ready("kafka")
        return True
    return False


async def wait_until_valid(settings: Settings, health: Health) -> None:
    """Return when Kafka answers and the topics are as declared; until then say in readyz what is in the way."""
    wait = 0.2
    while not await _look(settings, health):
        await asyncio.sleep(wait)
        wait = min(wait * 2, 5.0)
