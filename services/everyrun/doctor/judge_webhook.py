"""What the answers to self-tests mean, and what the bridge counted. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from everyrun.doctor.facts import SelfTest
from everyrun.doctor.findings import CLOCK_WARNS, Finding, failed, ok, warning
from everyrun.log.observation import SELF_TEST_ANSWER

BRIDGE, ADDRESS, SEEN, SECRETS = "bridge", "webhook address", "webhooks so far", "signing secrets"
_ROTATE = "docs/how-to/rotate-webhook-secret.md"


def judge_self_test(check: str, test: SelfTest, *, sure: bool = True) -> Finding:
    """Whether a bridge at the address took the self-test. Not ``sure`` of the address: no answer is a warning only."""
    answer, url = test.answer, test.url
    if answer.status == 200 and answer.body == SELF_TEST_ANSWER:
        return ok(check, f"{url} took a self-test signed with secret {test.secret}, and published nothing")
    if answer.status == 401 and answer.clock is not None and abs(answer.clock) > CLOCK_WARNS:
        found = f"{url} refused a signed self-test (401), and its clock is {answer.clock:+.0f} s off this machine's"
        return failed(check, found, "Set both clocks by NTP, then look again: the secret may be right.")
    if answer.status == 401:
        found = f"{url} refused a self-test signed with secret {test.secret} of EVERYRUN_WEBHOOK_SECRETS (401)"
        remedy = (
            "Start the bridge with the endpoint's signing secret (wss_...), the same as here. It was shown once, when "
            "the endpoint was made; lost, make the endpoint anew."
        )
        return failed(check, found, remedy)
    if answer.status == 0 and not sure:
        remedy = "Where the bridge runs on another machine, set EVERYRUN_BRIDGE_URL; else start it."
        return warning(check, f"{url} does not answer: {answer.message}", remedy)
    if answer.status == 0:
        found = f"{url} does not answer: {answer.message}"
        if check == BRIDGE:
            return failed(check, found, "Start it (python -m everyrun.bridge); see its log.")
        remedy = "Extend must reach it: check DNS, certificate, firewall, the reverse proxy or tunnel to the bridge."
        return failed(check, found, remedy)
    if answer.status in (502, 503, 504):
        found = f"{url} answers {answer.status}: what stands before the bridge does not reach it"
        return failed(check, found, "Start the bridge, and let the proxy or tunnel pass the address on to it.")
    found = f"{url} answers {answer.status}, and not as a bridge does"
    return failed(check, found, "Let the proxy pass this path, POST, body and headers unchanged, on to the bridge.")


def judge_secrets(counted: Mapping[int, float]) -> list[Finding]:
    """Say how many webhooks each secret signed, if the bridge has several: only then a rotation is under way."""
    if len(counted) < 2:
        return []
    said = ", ".join(f"secret {place} signed {number:.0f}" for place, number in sorted(counted.items()))
    unused = [str(place) for place, number in sorted(counted.items()) if not number]
    if unused and any(counted.values()):
        remedy = (
            f"Not proved yet: subscribe and enable the endpoint of secret {', '.join(unused)}. If that endpoint is "
            f"deleted, take its secret out of EVERYRUN_WEBHOOK_SECRETS: {_ROTATE}"
        )
        return [warning(SECRETS, f"{said} since the bridge started", remedy)]
    return [ok(SECRETS, f"{said} since the bridge started")]


def judge_seen(counted: Mapping[str, float]) -> Finding:
    """What the bridge counted since it started, by outcome."""
    taken = sum(counted.get(outcome, 0) for outcome in ("observed", "deferred", "step", "quarantined"))
    refused = counted.get("unauthorized", 0)
    if refused and not taken:
        remedy = (
            "EVERYRUN_WEBHOOK_SECRETS is not the secret that signs them, or the clock is off: set the signing secret "
            "of the endpoint. Requests of strangers are counted here too."
        )
        return failed(SEEN, f"{refused:.0f} refused as not signed by a known secret, none taken", remedy)
    if refused:
        remedy = "A second endpoint with another secret, or strangers: see docs/how-to/doctor.md."
        return warning(SEEN, f"{taken:.0f} taken, {refused:.0f} refused as not signed by a known secret", remedy)
    if counted.get("unavailable", 0):
        remedy = "Kafka was away; Extend sends them again, and the reconciler finds what is missed."
        return warning(SEEN, f"{taken:.0f} taken, {counted['unavailable']:.0f} told to come again", remedy)
    return ok(SEEN, f"{taken:.0f} taken since the bridge started")
