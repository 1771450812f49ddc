"""The doctor judges facts, and every failure says what to do."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from everyrun.cli.app import app
from everyrun.doctor import ask_postgres, judge_extend, judge_stores, judge_webhook
from everyrun.doctor.ask_extend import clock_of
from everyrun.doctor.examine import Facts, judge
from everyrun.doctor.facts import (
    Answer,
    ExtendFacts,
    Following,
    KafkaFacts,
    Late,
    PostgresFacts,
    ReceiverFacts,
    SelfTest,
    Swept,
)
from everyrun.doctor.findings import Finding, judge_clock, judge_object, judge_service
from everyrun.doctor.judge_progress import judge_following, judge_late, judge_receivers, judge_sweeps
from everyrun.extend.client import API_VERSION
from everyrun.log.observation import SELF_TEST_ANSWER
from everyrun.settings import Settings
from everyrun.store.migrate import SCHEMAS, versions
from everyrun.store.sql import beside
from everyrun.waiting import Waiting

URL = "https://hooks.example.com/webhooks/extend"
ENDPOINT = {"id": "wh_1", "url": URL, "status": "enabled", "apiVersion": API_VERSION}
SUBSCRIPTION = {
    "webhookEndpointId": "wh_1",
    "resourceType": "workflow",
    "resourceId": "workflow_a",
    "enabledEvents": list(judge_extend.NEEDED_EVENTS),
}
FILES = {schema: versions(folder) for schema, folder in SCHEMAS.items()}
UP_TO_DATE: dict[str, list[str] | None] = dict(FILES)


def says(finding: Finding, level: str, found: str, remedy: str = "") -> bool:
    assert finding.level == level, finding
    assert found in finding.found, finding
    assert remedy in finding.remedy, finding
    assert bool(finding.remedy) == (level != "ok"), finding
    return True


@pytest.mark.parametrize(
    ("status", "level", "remedy"),
    [
        (200, "ok", ""),
        (401, "failed", "EXTEND_API_KEY"),
        (402, "failed", "billing"),
        (403, "failed", "EXTEND_WORKSPACE_ID"),
        (400, "failed", "EXTEND_WORKSPACE_ID"),
        (0, "failed", "EVERYRUN_EXTEND_BASE_URL"),
        (500, "warning", "Try again"),
    ],
)
def test_key_is_judged_by_status(status: int, level: str, remedy: str) -> None:
    assert says(judge_extend.judge_key(Answer(status, "CODE", "text")), level, "", remedy)


def test_workflow_is_judged_by_status() -> None:
    known = judge_extend.judge_workflow("workflow_a", Answer(200, body={"name": "Invoices"}))
    assert says(known, "ok", "'Invoices'")
    assert says(
        judge_extend.judge_workflow("workflow_a", Answer(404)), "failed", "there is no such workflow", "Copy the id"
    )
    assert says(judge_extend.judge_workflow("workflow_a", Answer(403)), "warning", "403", "dashboard")


def endpoint(*found: dict[str, object], wanted: str = "", origins: tuple[str, ...] = ()) -> list[Finding]:
    return judge_extend.judge_endpoint(Answer(200, body=list(found)), wanted, origins)[0]


def test_endpoint_is_judged() -> None:
    other = {**ENDPOINT, "url": "https://example.com/other"}
    links = {**ENDPOINT, "advancedOptions": {"payload": {"format": "url"}}}
    assert says(*endpoint(other, ENDPOINT), "ok", URL)
    assert says(*endpoint(), "failed", "none of Extend's 0 endpoints", "Create one")
    assert says(*endpoint(other), "failed", "none of Extend's 1 endpoints", "docs/how-to/real-extend.md")
    assert says(*endpoint(ENDPOINT, wanted="https://b/webhooks/extend"), "failed", "https://b/webhooks", "Create")
    assert says(*endpoint({**ENDPOINT, "status": "disabled"}), "failed", "is disabled", "Enable it")
    assert says(*endpoint({**ENDPOINT, "apiVersion": "2025-04-21"}), "failed", "2025-04-21", API_VERSION)
    assert says(*endpoint(links), "warning", "signed links", "EVERYRUN_SIGNED_URL_ORIGINS")
    assert says(*endpoint(links, origins=("https://s3",)), "ok", "enabled")


def subscription(*found: dict[str, object]) -> Finding:
    return judge_extend.judge_subscription("workflow_a", [ENDPOINT], Answer(200, body=list(found)))


def test_subscription_is_judged() -> None:
    elsewhere = {**SUBSCRIPTION, "webhookEndpointId": "wh_2"}
    assert says(subscription(SUBSCRIPTION), "ok", "5 needed events")
    assert says(subscription(), "failed", "our endpoint is not subscribed", "POST /webhook_subscriptions")
    assert says(subscription(elsewhere), "failed", "other endpoints have 1", '"webhookEndpointId": "wh_1"')
    assert says(subscription({**SUBSCRIPTION, "resourceId": "workflow_b"}), "failed", "gets no events of runs", "P")
    some = {**SUBSCRIPTION, "enabledEvents": ["workflow_run.completed", "workflow_run.step_run.processed"]}
    assert says(subscription(some), "failed", "lacks workflow_run.failed, workflow_run.needs_review", "Subscribe again")


def test_rotation_needs_every_endpoint_subscribed_to_all_events() -> None:
    second = {**ENDPOINT, "id": "wh_2"}
    elsewhere = {**ENDPOINT, "id": "wh_3", "url": "https://staging.example.com/webhooks/extend"}
    old, new = SUBSCRIPTION, {**SUBSCRIPTION, "webhookEndpointId": "wh_2"}
    some = {**new, "enabledEvents": ["workflow_run.completed"]}

    def judged(*subscriptions: dict[str, object], of: tuple[dict[str, object], ...] = (ENDPOINT, second)) -> Finding:
        return judge_extend.judge_subscription("workflow_a", of, Answer(200, body=list(subscriptions)))

    assert says(judged(old, new), "ok", "5 needed events")
    for not_all in (judged(old), judged(old, some)):
        assert says(not_all, "warning", "wh_2 lacks events", "rotate-webhook-secret.md")
    # An endpoint with another address may belong to another installation.
    assert says(judged(old, of=(ENDPOINT, elsewhere)), "ok", "5 needed events")


def test_missing_secret_of_an_endpoint_fails() -> None:
    second = {**ENDPOINT, "id": "wh_2"}
    assert judge_extend.judge_number_of_secrets([ENDPOINT, second], 2) == []
    (missing,) = judge_extend.judge_number_of_secrets([ENDPOINT, second], 1)
    assert says(missing, "failed", "2 enabled endpoints", "every bridge")
    for other in ({**second, "status": "disabled"}, {**second, "url": "https://elsewhere/webhooks/extend"}):
        assert judge_extend.judge_number_of_secrets([ENDPOINT, other], 1) == []


def self_test(status: int, body: object = None, clock: float | None = 0.0, **more: bool) -> Finding:
    test = SelfTest(URL, 1, Answer(status, message="ConnectError", body=body, clock=clock))
    return judge_webhook.judge_self_test(judge_webhook.ADDRESS, test, **more)


def test_self_test_is_judged_by_status() -> None:
    assert says(self_test(200, SELF_TEST_ANSWER), "ok", "published nothing")
    assert says(self_test(200, {"hello": "world"}), "failed", "not as a bridge does", "proxy")
    assert says(self_test(401), "failed", "refused a self-test signed with secret 1", "signing secret (wss_...)")
    assert says(self_test(401, clock=-600.0), "failed", "-600 s off", "NTP")
    assert says(self_test(404), "failed", "404", "proxy")
    assert says(self_test(502), "failed", "does not reach the bridge", "Start the bridge")
    assert says(self_test(0), "failed", "does not answer: ConnectError", "firewall")
    assert says(self_test(0, sure=False), "warning", "does not answer", "EVERYRUN_BRIDGE_URL")


def test_unused_secret_warns_during_a_rotation() -> None:
    assert judge_webhook.judge_secrets({}) == []
    assert judge_webhook.judge_secrets({1: 9.0}) == []
    assert says(*judge_webhook.judge_secrets({1: 9.0, 2: 4.0}), "ok", "secret 1 signed 9, secret 2 signed 4")
    assert says(*judge_webhook.judge_secrets({1: 0.0, 2: 0.0}), "ok", "secret 1 signed 0")
    unproved = judge_webhook.judge_secrets({1: 9.0, 2: 0.0})
    assert says(*unproved, "warning", "secret 2 signed 0", "the endpoint of secret 2")


def test_counters_of_the_bridge_are_judged() -> None:
    assert says(judge_webhook.judge_seen({"observed": 5}), "ok", "5 accepted")
    # Refused self-tests of the doctor say nothing about Extend's secret.
    assert says(judge_webhook.judge_seen({"self_test_refused": 5}), "ok", "0 accepted")
    wrong = judge_webhook.judge_seen({"observed": 0, "unauthorized": 7})
    assert says(wrong, "failed", "7 refused", "EVERYRUN_WEBHOOK_SECRETS is not the secret")
    assert says(
        judge_webhook.judge_seen({"observed": 9, "unauthorized": 1}), "warning", "9 accepted, 1 refused", "secret"
    )


@pytest.mark.parametrize(
    ("ahead", "level"),
    [(0.4, "ok"), (-4.0, "ok"), (20.0, "warning"), (-250.0, "warning"), (61.0, "failed"), (-600.0, "failed")],
)
def test_clock_is_judged_by_its_difference(ahead: float, level: str) -> None:
    remedy = "" if level == "ok" else "NTP"
    assert says(judge_clock("Kafka", ahead, 300, 60), level, "", remedy)


def test_clock_is_read_from_the_date_header() -> None:
    assert clock_of({"date": "Thu, 01 Jan 1970 00:10:00 GMT"}, 0.5) == 600
    assert clock_of({}, 0) is None
    assert clock_of({"date": "noon"}, 0) is None


def test_kafka() -> None:
    (away, topics) = judge_stores.judge_kafka(KafkaFacts("KafkaConnectionError"))
    assert says(away, "failed", "KafkaConnectionError", "EVERYRUN_KAFKA_BOOTSTRAP")
    assert says(topics, "warning", "not checked", "First fix: Kafka")
    full, _ = judge_stores.judge_kafka(KafkaFacts(None, "id", [], "KafkaStorageError"))
    assert says(full, "failed", "accepts no record: KafkaStorageError", "disks")
    differences = [("has 3 partitions", "Add"), ("7 days", "Set it")]
    _, few, short = judge_stores.judge_kafka(KafkaFacts(None, "id", differences))
    assert says(few, "failed", "has 3 partitions", "Add")
    assert says(short, "failed", "7 days", "Set it")


def postgres(**facts: object) -> list[Finding]:
    given = PostgresFacts(**{"version": 170_004, "migrations": UP_TO_DATE, **facts})  # type: ignore[arg-type]
    return judge_stores.judge_postgres(given, FILES)


def test_postgres() -> None:
    well, migrated = postgres()
    assert says(well, "ok", "version 17 can be written")
    assert says(migrated, "ok", "up to date")
    lost = postgres(lost=[("sub_1", "upload-7", 400)])[-1]
    assert says(lost, "warning", "400 inputs of sub_1 were lost", "everyrun submit MANIFEST --idempotency-key upload-7")
    assert says(postgres(problem="OSError")[0], "failed", "does not answer: OSError", "EVERYRUN_POSTGRES_DSN")
    assert says(postgres(read_only="it is a standby")[0], "failed", "is read-only: it is a standby", "primary")
    assert says(postgres(write_problem="DiskFullError")[0], "failed", "DiskFullError", "disk")
    assert says(postgres(version=140_001)[0], "warning", "version 14", "15 to 18")
    gone, _ = postgres(migrations={**FILES, "everyrun": None, "everyrun_queue": []})[1:]
    assert says(gone, "failed", "the schema everyrun is missing", "everyrun migrate")
    _, behind = postgres(migrations={**FILES, "everyrun": None, "everyrun_queue": []})[1:]
    assert says(behind, "failed", f"lacks {FILES['everyrun_queue'][0]}", "everyrun migrate")
    newer = {**FILES, "everyrun": [*FILES["everyrun"], "2099"]}
    assert says(postgres(migrations=newer)[1], "warning", "2099", "newer")


def test_tables_of_another_kafka_fail() -> None:
    assert judge_stores.judge_same_log("a", []) == []
    assert says(*judge_stores.judge_same_log("a", ["a"]), "ok", "")
    assert says(*judge_stores.judge_same_log("a", ["b"]), "failed", "made from b, this Kafka is a", "Set")


def test_service_is_judged_by_readyz() -> None:
    waiting = Answer(503, body={"status": "not ready", "waiting": {"database": "away"}})
    assert says(judge_service("query", "http://q", Answer(200)), "ok", "http://q")
    assert says(judge_service("query", "http://q", waiting), "failed", "database: away", "log")
    assert says(judge_service("query", "http://q", Answer(0)), "failed", "does not answer", "EVERYRUN_QUERY_URL")
    serving = Answer(200, body={"status": "ready", "waiting": {"kafka": "no answer within 6 s"}})
    assert says(judge_service("submission", "http://s", serving), "warning", "waits for kafka: no answer", "log")
    dead = Answer(503, body={"waiting": {"kafka": "KafkaConnectionError: no", "topics": "no answer"}})
    assert says(judge_service("bridge", "http://b", dead, ["Kafka"]), "failed", "waits for Kafka", "First fix: Kafka.")
    assert "KafkaConnectionError" not in judge_service("bridge", "http://b", dead, ["Kafka"]).found
    assert says(judge_service("bridge", "http://b", dead), "failed", "KafkaConnectionError", "log")
    both = Answer(503, body={"waiting": {"kafka": "no", "jobs": "broken"}})
    assert says(judge_service("replay", "http://r", both, ["Kafka"]), "failed", "jobs: broken", "log")
    assert says(judge_service("processor", "", Answer(0)), "warning", "not checked", "EVERYRUN_PROCESSOR_URLS")


def test_an_object_is_judged_by_the_answer_of_the_submission_service() -> None:
    address = "s3://invoices/a.pdf"
    assert says(judge_object(address, Answer(200)), "ok", "can read and presign")
    denied = Answer(422, "OBJECT_UNREADABLE", "the submission service cannot read s3://invoices/a.pdf: 403")
    assert says(judge_object(address, denied), "failed", "cannot read", "docs/how-to/sources.md")
    assert says(judge_object(address, Answer(0, message="refused")), "warning", "not checked", "refused")
    facts = Facts(None, None, None, [], [], None, [], [], None, (address, Answer(200)))
    assert f"object {address}" in {line.check for line in judge(Settings(), facts, False)}


def test_progress_is_judged() -> None:
    assert says(judge_following(Following()), "ok", "every record")
    assert says(judge_following(Following(7, True, 0.5)), "ok", "7 records")
    assert says(judge_following(Following(7, False, 10.0)), "failed", "7 records", "everyrun.processor")
    assert says(judge_following(Following(problem="KafkaError")), "warning", "not checked", "KafkaError")
    assert judge_sweeps([], 300) == []
    assert says(*judge_sweeps([Swept("workflow_a", 3, 1100)], 300), "ok", "lately")
    stale = [Swept("workflow_a", 3, 1300), Swept("workflow_b", 1, 10)]
    assert says(*judge_sweeps(stale, 300), "warning", "3 batches", "everyrun.reconciler")
    assert judge_sweeps([Swept("workflow_a", 3, 500)], 1)[0].level == "ok"


def test_a_receiver_that_has_failed_for_an_hour_is_a_warning() -> None:
    assert judge_receivers([]) == []
    good, late = ReceiverFacts("rcv_1", 3599, "answered 503"), ReceiverFacts("rcv_2", 7200, "answered 503")
    assert says(*judge_receivers([good]), "ok", "hour")
    found = judge_receivers([good, late])
    assert says(*found, "warning", "2 hours: answered 503", "everyrun notify show rcv_2")


def test_missing_settings_are_named() -> None:
    settings = Settings()
    facts = Facts(None, None, None, [], [], None, [], [])
    lines = judge(settings, facts, False)
    assert {line.level for line in lines} == {"failed"}
    named = {line.found.partition(" ")[0] for line in lines}
    assert named == {"EXTEND_API_KEY", "EVERYRUN_WEBHOOK_SECRETS", "EVERYRUN_KAFKA_BOOTSTRAP", "EVERYRUN_POSTGRES_DSN"}


def test_polling_only_skips_webhook_checks() -> None:
    facts = Facts(ExtendFacts(Answer(200)), None, None, [], [], None, [], [])
    checks = {line.check for line in judge(Settings(), facts, True)}
    assert checks == {"Extend's key", "workflow", "Kafka", "Postgres", "clock of Extend"}


@pytest.mark.parametrize(
    ("variables", "says_so"), [({}, "everyrun up"), ({"EVERYRUN_BRIDGE_LISTEN": "?"}, "EVERYRUN_BRIDGE_LISTEN")]
)
def test_doctor_without_valid_settings_exits_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], says_so: str
) -> None:
    for name in ("EXTEND_API_KEY", "EVERYRUN_KAFKA_BOOTSTRAP", "EVERYRUN_POSTGRES_DSN"):
        monkeypatch.delenv(name, raising=False)
    try:
        said = CliRunner().invoke(app, ["doctor", "--data-dir", str(tmp_path)], env=variables)
    finally:
        logging.disable(logging.NOTSET)
    assert said.exit_code == 2
    assert says_so in said.stderr


def test_migrations_of_every_schema_are_read() -> None:
    asked = {name for name in beside(ask_postgres.__file__, "doctor.sql").names() if name.startswith("migrations_of_")}
    assert asked == {f"migrations_of_{schema}" for schema in SCHEMAS}


def test_doctor_warns_or_fails_for_late_inputs() -> None:
    def late(waits_for: str, *, passed: bool = False) -> Late:
        return Late(Waiting("WAITING", waits_for, 400, "why", None, "everyrun x"), 2, passed)

    levels = {kind: judge_late([late(kind)])[0].level for kind in ("unannounced", "held", "in_doubt", "calling")}
    assert levels == {"unannounced": "failed", "held": "warning", "in_doubt": "warning", "calling": "warning"}
    (finding,) = judge_late([late("calling", passed=True)])
    assert finding.level == "failed"
    assert "400 inputs of 2 submissions" in finding.found
    assert "everyrun x" in finding.remedy
    assert judge_late([])[0].level == "ok"
