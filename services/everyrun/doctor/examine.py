"""Examine an installation: first gather all facts about it, then judge them."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from everyrun.doctor import findings, judge_extend, judge_progress, judge_stores, judge_webhook
from everyrun.doctor.ask_bridge import counted, readable_object, readiness, self_test
from everyrun.doctor.ask_extend import ask_extend
from everyrun.doctor.ask_kafka import ask_kafka
from everyrun.doctor.ask_postgres import ask_postgres
from everyrun.doctor.ask_progress import ask_progress
from everyrun.doctor.facts import Answer, Counted, ExtendFacts, Following, KafkaFacts, PostgresFacts, SelfTest, Service
from everyrun.doctor.findings import Finding, judge_clock, not_checked, not_set, warning
from everyrun.settings import Settings, variable
from everyrun.store.migrate import SCHEMAS, versions


class Facts(Struct, frozen=True):
    """All facts that were gathered. The facts about a system whose settings are missing are None.

    ``bridge`` are the self-tests that were posted to the bridge directly, ``addresses`` those that were posted to the
    URLs to which Extend sends webhooks. ``workflows`` are the ids of the workflows to check. ``of_object`` is the
    address of an object and the submission service's response about it, if an object is to be checked.
    """

    extend: ExtendFacts | None
    kafka: KafkaFacts | None
    postgres: PostgresFacts | None
    bridge: list[SelfTest]
    addresses: list[SelfTest]
    counted: Counted | None
    services: list[Service]
    workflows: list[str]
    following: Following | None = None
    of_object: tuple[str, Answer] | None = None


def bridge_url(settings: Settings) -> str:
    """Return the bridge's URL: EVERYRUN_BRIDGE_URL, or the bridge's port on this machine if that is not set."""
    return settings.bridge_url or f"http://127.0.0.1:{settings.bridge_listen.rpartition(':')[2]}"


async def examine(
    settings: Settings, workflow_id: str | None, *, polling_only: bool = False, address: str | None = None
) -> list[Finding]:
    """Return the findings of all checks, for one workflow or for the workflows of the latest submissions.

    If ``address`` is given, check too that the submission service can read this object in a bucket.

    The examination changes nothing that services read. A record is written to the topic ``probes``, which has no
    readers, and signed self-tests are posted to the bridge, which counts them and drops them. ``polling_only`` skips
    the checks that concern webhooks.
    """
    return judge(settings, await gather(settings, workflow_id, polling_only, address), polling_only)


async def gather(settings: Settings, workflow_id: str | None, polling_only: bool, address: str | None = None) -> Facts:
    """Gather all facts that these settings allow."""
    both = bool(settings.kafka_bootstrap and settings.postgres_dsn)
    kafka, stored, following, services = await asyncio.gather(
        ask_kafka(settings) if settings.kafka_bootstrap else _no_answer(),
        ask_postgres(settings) if settings.postgres_dsn else _no_answer(),
        ask_progress(settings) if both else _no_answer(),
        _services(settings, polling_only),
    )
    postgres, submitted = stored if stored is not None else (None, [])
    workflows = [workflow_id] if workflow_id else submitted
    has_key = bool(settings.extend_api_key.get_secret_value())
    extend = await ask_extend(settings, workflows) if has_key else None
    bridge, addresses, numbers = [], [], None
    if not polling_only:
        url = bridge_url(settings)
        numbers = await counted(url)
        bridge = await _self_tests(settings, url + judge_extend.WEBHOOK_PATH)
        if extend is not None and extend.endpoints is not None and extend.endpoints.status == 200:
            # While a secret is rotated, several endpoints have the same address. Test each address only once, but with
            # every secret.
            found = judge_extend.our_endpoints(extend.endpoints.body, settings.webhook_url)
            for url in dict.fromkeys(str(endpoint["url"]) for endpoint in found):
                addresses += await _self_tests(settings, url)
    of_object = None
    if address is not None:
        token = settings.api_token.get_secret_value()
        asked = bool(settings.submission_url)
        answer = await readable_object(settings.submission_url, token, address) if asked else await _unasked()
        of_object = address, answer
    return Facts(extend, kafka, postgres, bridge, addresses, numbers, services, workflows, following, of_object)


async def _services(settings: Settings, polling_only: bool) -> list[Service]:
    """Ask every service if it is ready. Ask all at the same time, so that one that hangs does not delay the others."""
    places = [
        ("submission", settings.submission_url),
        ("query", settings.query_url),
        *(("processor", url) for url in settings.processor_urls or [""]),
        ("reconciler", settings.reconciler_url),
        ("replay", settings.replay_url),
        ("notifier", settings.notifier_url),
    ]
    if settings.bridge_url and not polling_only:
        # If the setting is missing, only the self-test checks the bridge: it looks for the bridge on this machine.
        places.insert(0, ("bridge", settings.bridge_url))
    answers = await asyncio.gather(*(readiness(url) if url else _unasked() for _, url in places))
    return [Service(name, url, answer) for (name, url), answer in zip(places, answers, strict=True)]


async def _unasked() -> Answer:
    return Answer(0)


async def _no_answer() -> None:
    """Return None: the facts about a system that cannot be asked, because its settings are missing."""


async def _self_tests(settings: Settings, url: str) -> list[SelfTest]:
    secrets = [secret.get_secret_value().encode() for secret in settings.webhook_secrets]
    return [await self_test(url, secret, number) for number, secret in enumerate(secrets, 1)]


def judge(settings: Settings, facts: Facts, polling_only: bool) -> list[Finding]:
    """Return the findings that follow from the facts. Pure."""
    lines = _extend(settings, facts, polling_only)
    if not polling_only:
        lines += _webhooks(settings, facts)
    lines += _stores(facts)
    lines += _clocks(settings, facts)
    stores = {judge_stores.KAFKA: facts.kafka, judge_stores.POSTGRES: facts.postgres}
    broken = [name for name, store in stores.items() if store is not None and store.problem is not None]
    lines += [findings.judge_service(one.name, one.url, one.ready, broken) for one in facts.services]
    if facts.of_object is not None:
        lines.append(findings.judge_object(*facts.of_object))
    if facts.following is not None:
        lines.append(judge_progress.judge_following(facts.following))
    if facts.postgres is not None:
        lines += judge_progress.judge_sweeps(facts.postgres.swept, settings.sweep_every)
        if facts.postgres.problem is None and all(facts.postgres.migrations.values()):
            lines += judge_progress.judge_late(facts.postgres.late)
            lines += judge_progress.judge_receivers(facts.postgres.receivers)
    return lines


def _extend(settings: Settings, facts: Facts, polling_only: bool) -> list[Finding]:
    if facts.extend is None:
        return [_missing(judge_extend.KEY, "extend_api_key")]
    lines = [judge_extend.judge_key(facts.extend.key)]
    works = facts.extend.key.status == 200
    if not facts.workflows:
        found = "not checked: no workflow is named, and none is known from a submission"
        lines.append(warning(judge_extend.WORKFLOW, found, "Name one: everyrun doctor --workflow workflow_..."))
    for workflow in facts.workflows:
        known = facts.extend.workflows.get(workflow)
        check = f"{judge_extend.WORKFLOW} {workflow}"
        lines.append(judge_extend.judge_workflow(workflow, known) if known else not_checked(check, judge_extend.KEY))
    if polling_only:
        return lines
    endpoint_lines, endpoints = judge_extend.judge_endpoint(
        facts.extend.endpoints if works else None, settings.webhook_url, settings.signed_url_origins
    )
    lines += endpoint_lines
    if settings.webhook_secrets:
        lines += judge_extend.judge_number_of_secrets(endpoints, len(settings.webhook_secrets))
    for workflow in facts.workflows:
        lines.append(judge_extend.judge_subscription(workflow, endpoints, facts.extend.subscriptions))
    return lines


def _webhooks(settings: Settings, facts: Facts) -> list[Finding]:
    if not settings.webhook_secrets:
        return [_missing(judge_webhook.BRIDGE, "webhook_secrets")]
    # If the setting is missing, the address is a guess: the bridge may run on another machine than this one.
    sure = bool(settings.bridge_url)
    lines = [judge_webhook.judge_self_test(judge_webhook.ADDRESS, test) for test in facts.addresses]
    lines += [judge_webhook.judge_self_test(judge_webhook.BRIDGE, test, sure=sure) for test in facts.bridge]
    if facts.counted is not None:
        lines.append(judge_webhook.judge_seen(facts.counted.outcomes))
        lines += judge_webhook.judge_secrets(facts.counted.signed)
    return lines


def _stores(facts: Facts) -> list[Finding]:
    lines: list[Finding] = []
    if facts.kafka is None:
        lines.append(_missing(judge_stores.KAFKA, "kafka_bootstrap"))
    else:
        lines += judge_stores.judge_kafka(facts.kafka)
    if facts.postgres is None:
        lines.append(_missing(judge_stores.POSTGRES, "postgres_dsn"))
    else:
        files = {schema: versions(folder) for schema, folder in SCHEMAS.items()}
        lines += judge_stores.judge_postgres(facts.postgres, files)
    if facts.kafka is not None and facts.postgres is not None:
        lines += judge_stores.judge_same_log(facts.kafka.cluster_id, facts.postgres.cluster_ids)
    return lines


def _clocks(settings: Settings, facts: Facts) -> list[Finding]:
    limits = (settings.webhook_max_age, settings.webhook_max_ahead)
    clocks: dict[str, float | None] = {}
    if facts.extend is not None and facts.extend.key.status:
        clocks["Extend"] = facts.extend.key.clock
    if facts.kafka is not None and facts.kafka.clock is not None:
        clocks["Kafka"] = facts.kafka.clock
    if facts.postgres is not None and facts.postgres.clock is not None:
        clocks["Postgres"] = facts.postgres.clock
    bridges = [test.answer.clock for test in facts.bridge if test.answer.status]
    if bridges:
        clocks["the bridge"] = bridges[0]
    return [judge_clock(whose, ahead, *limits) for whose, ahead in clocks.items()]


def _missing(check: str, name: str) -> Finding:
    return not_set(check, variable(name), str(Settings.model_fields[name].description))
