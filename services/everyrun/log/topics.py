"""Create the topics that ``infra/kafka/topics.yaml`` declares, and check live topics against that file."""

from __future__ import annotations

import asyncio
import contextlib
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

#: Seconds between two checks, and the timeout of one. A frozen Kafka, which accepts connections but never answers, is
#: noticed within the sum of both.
_EVERY, _WITHIN = 4.0, 6.0
#: Maximum number of seconds to wait until a connection is closed.
_CLOSED_WITHIN = 1.0


class TopicsError(EveryrunError):
    """The live topics differ from the declaration in a way that could lose data.

    The error's text says how to fix that.
    """


class Topic(Struct, frozen=True):
    """A topic: its short name, its number of partitions, and its settings as text."""

    name: str
    partitions: int
    config: dict[str, str]


class LogIdentity(NamedTuple):
    """Identifies the log that tables are made from: the Kafka cluster and the number of partitions.

    The partition of a key depends on the number of partitions. So if the number changed, a chunk's events would lie in
    different partitions.
    """

    cluster_id: str
    partitions: int


def _declaration() -> Path:
    installed = Path(__file__).with_name("topics.yaml")
    return installed if installed.exists() else Path(__file__).resolve().parents[3] / "infra" / "kafka" / "topics.yaml"


def declared(path: Path | None = None) -> list[Topic]:
    """Return the declared topics."""
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
    """Return the differences that could lose or misplace data, each as a text with the problem and the remedy."""
    return [f"{what}. {remedy}" for what, remedy in differences(wanted, live, prefix)]


def differences(wanted: list[Topic], live: Mapping[str, Topic], prefix: str = "") -> list[tuple[str, str]]:
    """Return the differences that could lose or misplace data, each as (problem, remedy).

    ``live`` holds the live topics by short name. The returned texts name topics with the prefix.
    """
    problems = []
    for topic in wanted:
        name = prefix + topic.name
        found = live.get(topic.name)
        if found is None:
            problems.append((f"topic {name} is missing", "Create the topics: everyrun topics create."))
            continue
        if found.partitions < topic.partitions:
            what = f"topic {name} has {found.partitions} partitions instead of {topic.partitions}"
            problems.append((what, "Add partitions before anything is written to it."))
        for setting, value in sorted(topic.config.items()):
            if _loses(setting, value, found.config.get(setting)):
                what = f"topic {name}: {setting} is {found.config.get(setting)} instead of {value}"
                remedy = f"Set it with kafka-configs --alter --topic {name} --add-config {setting}={value}"
                problems.append((what, remedy))
    sides = [live[name].partitions for name in ("batches", "runs") if name in live]
    if len(set(sides)) > 1:
        what = (
            f"{prefix}batches has {sides[0]} partitions and {prefix}runs has {sides[1]}: the events and the runs of a "
            "batch would not reach the same worker"
        )
        problems.append((what, "Give both the same number of partitions before anything is written to them."))
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
    """Return the id of the Kafka cluster. Raises aiokafka.errors.KafkaError."""
    admin = await _admin(settings)
    try:
        described = await admin.describe_cluster()
        return str(described["cluster_id"])
    finally:
        await admin.close()


async def identity(settings: Settings) -> LogIdentity:
    """Return the identity of the log. Its number of partitions is that of ``runs``; ``batches`` has the same.

    Raises aiokafka.errors.KafkaError. It is an UnknownTopicOrPartitionError if the topic ``runs`` does not exist.
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
    """Create the missing topics and return their short names, once Kafka lists them all.

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
            await _until_listed(admin, {settings.topic(topic.name) for topic in missing})
        return [topic.name for topic in missing]
    finally:
        await admin.close()


async def _until_listed(admin: AIOKafkaAdminClient, names: set[str]) -> None:
    """Wait until Kafka lists the topics, which takes a moment after their creation is acknowledged."""
    for _ in range(100):
        listed = {topic["topic"] for topic in await admin.describe_topics(sorted(names)) if topic["error_code"] == 0}
        if listed == names and names <= set(await admin.list_topics()):
            return
        await asyncio.sleep(0.1)
    raise KafkaTimeoutError(f"topics {sorted(names)} were created but Kafka does not list them")


async def live(settings: Settings) -> dict[str, Topic]:
    """Return the live state of the declared topics, by short name. Raises aiokafka.errors.KafkaError."""
    admin = await _admin(settings)
    try:
        return await _live(admin, settings, declared())
    finally:
        await admin.close()


async def _live(admin: AIOKafkaAdminClient, settings: Settings, wanted: list[Topic]) -> dict[str, Topic]:
    names = {settings.topic(topic.name): topic.name for topic in wanted}
    # All topics are asked for. A broker could create a missing one that is asked for by its name.
    described = [
        topic for topic in await admin.describe_topics() if topic["topic"] in names and not topic["error_code"]
    ]
    partitions = {topic["topic"]: len(topic["partitions"]) for topic in described}
    if not partitions:
        return {}
    found = {}
    for answer in await admin.describe_configs(
        [ConfigResource(ConfigResourceType.TOPIC, t) for t in sorted(partitions)]
    ):
        for _code, _message, _kind, name, entries in answer.resources:
            config = {entry[0]: entry[1] for entry in entries}
            found[names[name]] = Topic(names[name], partitions[name], config)
    return found


async def check(settings: Settings) -> None:
    """Raise TopicsError if a live topic differs from the declaration in a way that could lose data."""
    problems = compare(declared(), await live(settings), settings.topic_prefix)
    if problems:
        raise TopicsError("\n".join(problems))


class _Checker:
    """Checks the topics over one connection. It is kept while Kafka answers: connecting costs more than the check."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._wanted = declared()
        self._admin: AIOKafkaAdminClient | None = None

    async def report(self, health: Health) -> bool:
        """Check once, and report the outcome in readyz. Return whether all is well. Raises no error of Kafka."""
        try:
            async with asyncio.timeout(_WITHIN):
                self._admin = self._admin or await _admin(self._settings)
                found = await _live(self._admin, self._settings, self._wanted)
        except TimeoutError:
            health.not_ready("kafka", f"no answer within {_WITHIN:g} s")
            await self.close()
            return False
        except (KafkaError, OSError) as error:
            health.not_ready("kafka", f"{type(error).__name__}: {error}")
            await self.close()
            return False
        health.ready("kafka")
        problems = "\n".join(compare(self._wanted, found, self._settings.topic_prefix))
        if problems:
            health.not_ready("topics", problems)
            _log.error("the topics differ from the declaration", problems=problems)
            return False
        health.ready("topics")
        return True

    async def close(self) -> None:
        """Close the connection. The next check makes a new one."""
        admin, self._admin = self._admin, None
        if admin is not None:
            # A frozen Kafka may never let the client close. The check must go on all the same.
            with contextlib.suppress(TimeoutError, KafkaError, OSError):
                async with asyncio.timeout(_CLOSED_WITHIN):
                    await admin.close()


async def keep_checking(settings: Settings, health: Health, every: float = _EVERY) -> None:
    """Check every few seconds, for ever, and report in readyz if Kafka is unavailable or the topics are wrong."""
    checker = _Checker(settings)
    try:
        while True:
            await checker.report(health)
            await asyncio.sleep(every)
    finally:
        await checker.close()


async def wait_until_valid(settings: Settings, health: Health) -> None:
    """Return once Kafka answers and the topics match the declaration. Reports in readyz what is wrong until then."""
    checker = _Checker(settings)
    wait = 0.2
    try:
        while not await checker.report(health):
            await asyncio.sleep(wait)
            wait = min(wait * 2, 5.0)
    finally:
        await checker.close()
