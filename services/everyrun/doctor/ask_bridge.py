"""Post signed self-tests to the bridge, read the bridge's counters, and ask the services what they can do."""

from __future__ import annotations

import re
import time

import httpx

from everyrun.doctor.ask_extend import request
from everyrun.doctor.facts import Answer, Counted, SelfTest
from everyrun.extend.signature import SIGNATURE_HEADER, TIMESTAMP_HEADER, sign
from everyrun.log.observation import SELF_TEST

#: Timeout in seconds of one self-test, and of one request for the counters.
_WITHIN = 10.0
#: Timeout in seconds of GET /readyz. It is short because a working service answers at once.
_READY_WITHIN = 5.0
#: Timeout in seconds of the check of an object. The service itself waits up to half of EVERYRUN_DISPATCH_DEADLINE.
_OBJECT_WITHIN = 60.0
_COUNTED = re.compile(r'^everyrun_bridge_webhooks_total\{outcome="(\w+)"\} (\S+)$', re.MULTILINE)
_SIGNED = re.compile(r'^everyrun_bridge_signed_total\{secret="(\d+)"\} (\S+)$', re.MULTILINE)


async def self_test(url: str, secret: bytes, number: int) -> SelfTest:
    """Post a self-test to a URL. Like Extend, sign it with a secret, and do not follow redirects.

    ``number`` is the number of the secret in EVERYRUN_WEBHOOK_SECRETS, from 1.
    """
    stamp = str(int(time.time())).encode()
    headers = [
        (b"content-type", b"application/json"),
        (TIMESTAMP_HEADER, stamp),
        (SIGNATURE_HEADER, sign(stamp, SELF_TEST, secret)),
    ]
    async with httpx.AsyncClient(timeout=_WITHIN) as http:
        return SelfTest(url, number, await request(http, "POST", url, content=SELF_TEST, headers=headers))


async def counted(bridge_url: str) -> Counted | None:
    """Return the bridge's counters since it started, or None if the bridge does not return any."""
    try:
        async with httpx.AsyncClient(timeout=_WITHIN) as http:
            answer = await http.get(bridge_url + "/metrics")
    except (httpx.HTTPError, httpx.InvalidURL):
        return None
    outcomes = {outcome: float(number) for outcome, number in _COUNTED.findall(answer.text)}
    signed = {int(place): float(number) for place, number in _SIGNED.findall(answer.text)}
    return Counted(outcomes, signed) if outcomes else None


async def readiness(url: str) -> Answer:
    """Return a service's response to GET /readyz. Wait only a few seconds for it, because a service may hang."""
    async with httpx.AsyncClient(timeout=_READY_WITHIN) as http:
        return await request(http, "GET", url + "/readyz")


async def readable_object(submission_url: str, token: str, address: str) -> Answer:
    """Return the submission service's response about an object: if it can read and presign it."""
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(timeout=_OBJECT_WITHIN) as http:
        url = f"{submission_url}/v1/objects/check"
        return await request(http, "GET", url, params={"object": address}, headers=headers)
