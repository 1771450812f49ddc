"""Judge the responses to the self-tests that were posted to the bridge, and the bridge's counters. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from everyrun.doctor.facts import SelfTest
from everyrun.doctor.findings import CLOCK_WARNS, Finding, failed, ok, warning
from everyrun.log.observation import SELF_TEST_ANSWER

BRIDGE, ADDRESS, SEEN, SECRETS = "bridge", "webhook address", "webhooks so far", "signing secrets"
_ROTATE = "docs/how-to/rotate-webhook-secret.md"


def judge_self_test(check: str, test: SelfTest, *, sure: bool = True) -> Finding:
    """Judge whether there is a bridge at the address, and whether it accepted the self-test.

    ``sure`` is False if the address is only a guess: then a missing response is a warning, and not a failure.
    """
    answer, url = test.answer, test.url
    if answer.status == 200 and answer.body == SELF_TEST_ANSWER:
        return ok(check, f"{url} accepted a self-test signed with secret {test.secret}, and published nothing")
    if answer.status == 401 and answer.clock is not None and abs(answer.clock) > CLOCK_WARNS:
        found = f"{url} refused a signed self-test (401), and its clock is {answer.clock:+.0f} s off this machine's"
        return failed(check, found, "Synchronize both clocks by NTP, then check again: the secret may be right.")
    if answer.status == 401:
        found = f"{url} refused a self-test signed with secret {test.secret} of EVERYRUN_WEBHOOK_SECRETS (401)"
        remedy = (
            "Start the bridge with the endpoint's signing secret (wss_...), the same as here. Extend shows it only "
            "when the endpoint is created. If it is lost, create a new endpoint."
        )
        return failed(check, found, remedy)
    if answer.status == 0 and not sure:
        remedy = "If the bridge runs on another machine, set EVERYRUN_BRIDGE_URL. Else start it."
        return warning(check, f"{url} does not answer: {answer.message}", remedy)
    if answer.status == 0:
        found = f"{url} does not answer: {answer.message}"
        if check == BRIDGE:
            return failed(check, found, "Start it (python -m everyrun.bridge), and see its log.")
        remedy = "Extend must reach it: check DNS, certificate, firewall, and the proxy or tunnel to the bridge."
        return failed(check, found, remedy)
    if answer.status in (502, 503, 504):
        found = f"{url} answers {answer.status}: the proxy or tunnel does not reach the bridge"
        return failed(check, found, "Start the bridge, and forward this URL to it.")
    found = f"{url} answers {answer.status}, and not as a bridge does"
    return failed(check, found, "Let the proxy forward POST requests for this path to the bridge, unchanged.")


def judge_secrets(counted: Mapping[int, float]) -> list[Finding]:
    """Report how many webhooks each secret has signed. Warn about a secret that has signed none.

    If the bridge has only one secret, return no finding. Several secrets mean that a rotation is in progress.
    """
    if len(counted) < 2:
        return []
    found = ", ".join(f"secret {secret} signed {webhooks:.0f}" for secret, webhooks in sorted(counted.items()))
    unused = [str(secret) for secret, webhooks in sorted(counted.items()) if not webhooks]
    if unused and any(counted.values()):
        remedy = (
            f"Subscribe and enable the endpoint of secret {', '.join(unused)}. If that endpoint was deleted, remove "
            f"its secret from EVERYRUN_WEBHOOK_SECRETS: see {_ROTATE}"
        )
        return [warning(SECRETS, f"{found} since the bridge started", remedy)]
    return [ok(SECRETS, f"{found} since the bridge started")]


def judge_seen(counted: Mapping[str, float]) -> Finding:
    """Judge the bridge's counters: whether it accepted the webhooks that arrived since it started."""
    taken = sum(counted.get(outcome, 0) for outcome in ("observed", "deferred", "step", "quarantined"))
    refused = counted.get("unauthorized", 0)
    if refused and not taken:
        remedy = (
            "EVERYRUN_WEBHOOK_SECRETS is not the secret that signs them, or a clock is wrong. Set it to the endpoint's "
            "signing secret. Requests from strangers are counted here too."
        )
        return failed(SEEN, f"{refused:.0f} refused because no known secret signed them, none accepted", remedy)
    if refused:
        remedy = "The cause is a second endpoint with another secret, or strangers: see docs/how-to/doctor.md."
        return warning(SEEN, f"{taken:.0f} accepted, {refused:.0f} refused: no known secret signed them", remedy)
    if counted.get("unavailable", 0):
        remedy = "Kafka was unavailable. Extend retries these webhooks, and the reconciler finds what is missing."
        return warning(SEEN, f"{taken:.0f} accepted, {counted['unavailable']:.0f} answered with 503", remedy)
    return ok(SEEN, f"{taken:.0f} accepted since the bridge started")
