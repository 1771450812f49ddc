"""Ready means that callers can be served. Parts that only delay work are reported beside it."""

from __future__ import annotations

import msgspec
from prometheus_client import CollectorRegistry, generate_latest

from everyrun.health import Health
from everyrun.serve import with_health


def readyz(health: Health) -> tuple[int, dict[str, object]]:
    status, body = health.answer("/readyz")
    return status, msgspec.json.decode(body)


def test_needed_parts_decide_readiness_and_reported_parts_do_not() -> None:
    health = Health("database", at_start=("kafka",), reported=("jobs",))
    starting = {"database": "starting", "kafka": "starting", "jobs": "starting"}
    assert readyz(health) == (503, {"status": "not ready", "waiting": starting, "missing": ["database", "kafka"]})
    health.ready("database")
    assert readyz(health)[0] == 503
    health.ready("kafka")
    assert readyz(health) == (200, {"status": "ready", "waiting": {"jobs": "starting"}})
    health.ready("jobs")
    assert readyz(health) == (200, {"status": "ready"})
    health.not_ready("kafka", "no answer within 6 s")
    assert readyz(health) == (200, {"status": "ready", "waiting": {"kafka": "no answer within 6 s"}})
    health.not_ready("database", "gone")
    assert readyz(health)[0] == 503
    health.ready("database")
    # A part that was not declared counts as needed.
    health.not_ready("writing", "a standby")
    assert readyz(health)[1]["missing"] == ["writing"]
    assert health.answer("/healthz")[0] == 200
    health.fail("stuck")
    assert readyz(health) == (503, {"status": "failed", "reason": "stuck"})


def test_the_metrics_show_readiness_and_waiting_parts() -> None:
    health, registry = Health("database", reported=("jobs",)), CollectorRegistry()
    with_health(health, None, registry)
    health.ready("database")
    shown = generate_latest(registry).decode()
    assert "everyrun_ready 1.0" in shown
    assert 'everyrun_waiting{part="jobs"} 1.0' in shown
