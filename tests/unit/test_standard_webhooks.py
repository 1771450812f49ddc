"""Webhooks are signed as the specification Standard Webhooks says; its own library is the judge."""

from __future__ import annotations

import time

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from everyrun.standard_webhooks import headers, is_secret, sign

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


def test_the_signature_is_that_of_the_specifications_example() -> None:
    """The example of the specification (standard-webhooks/spec, "Signature scheme")."""
    body = b'{"test": 2432232314}'
    signed = sign(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_library_verifies_a_request_with_either_secret_of_a_rotation() -> None:
    body = b'{"type":"submission-settled"}'
    made = headers("ntf_1", int(time.time()), body, [SECRET, OTHER])
    for secret in (SECRET, OTHER):
        assert Webhook(secret).verify(body, made) == {"type": "submission-settled"}
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body + b" ", made)
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(body, headers("ntf_1", int(time.time()), body, [SECRET]))


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (SECRET, True),
        (SECRET.removeprefix("whsec_"), False),
        ("whsec_c2hvcnQ=", False),
        ("whsec_not base64 at all, not at all", False),
        ("whsec_" + "A" * 88, False),
        ("", False),
    ],
)
def test_a_secret_has_its_prefix_and_24_to_64_bytes(text: str, good: bool) -> None:
    assert is_secret(text) is good
