"""Webhook signatures are accepted and refused exactly as in Extend's SDK."""

from __future__ import annotations

from unittest import mock

import pytest
from extend_ai.wrapper.errors import WebhookSignatureVerificationError
from extend_ai.wrapper.webhooks import Webhooks
from hypothesis import given
from hypothesis import strategies as st

from everyrun.extend.signature import sign, verify

NOW = 1767225600
SECRET = "wss_example_secret_0123456789"
BODY = (
    b'{"eventId":"event_1234","eventType":"workflow_run.completed",'
    b'"payload":{"object":"workflow_run","id":"workflow_run_1234"}}'
)


def sdk_takes(timestamp: str, signature: str, body: str, secret: str, now: float = NOW) -> bool:
    headers = {"x-extend-request-timestamp": timestamp, "x-extend-request-signature": signature}
    with mock.patch("extend_ai.wrapper.webhooks.time.time", return_value=now):
        try:
            Webhooks()._verify_signature(body, headers, secret)
        except WebhookSignatureVerificationError:
            return False
    return True


def ours_takes(timestamp: str, signature: str, body: str, secret: str, now: float = NOW) -> bool:
    return verify(timestamp.encode(), signature.encode(), body.encode(), [secret.encode()], now) is None


def test_example_has_the_known_signature() -> None:
    known = b"2ab82504b8c1b709603a196e5979980158ebbfe8abd3516ff5c56b39f1b7d164"
    assert sign(str(NOW).encode(), BODY, SECRET.encode()) == known
    assert verify(str(NOW).encode(), known, BODY, [SECRET.encode()], NOW) is None


@pytest.mark.parametrize(
    ("timestamp", "taken"),
    [
        (str(NOW), True),
        (str(NOW - 300), True),
        (str(NOW - 301), False),
        (str(NOW + 60), True),
        (str(NOW + 61), False),
        (str(NOW * 1000), False),
        ("1_767_225_600", True),
        ("1__767225600", False),
        ("+1767225600", True),
        (" 1767225600 ", True),
        ("\t1767225600", True),
        ("01767225600", True),
        ("1767225600.0", False),
        ("-1767225600", False),
        ("0x69570c80", False),
        ("now", False),
        ("", False),
        ("9" * 5000, False),
    ],
)
def test_timestamp_is_read_like_the_sdk(timestamp: str, taken: bool) -> None:
    signature = sign(timestamp.encode(), BODY, SECRET.encode()).decode()
    assert sdk_takes(timestamp, signature, BODY.decode(), SECRET) is taken
    assert ours_takes(timestamp, signature, BODY.decode(), SECRET) is taken


@pytest.mark.parametrize("change", [str.upper, lambda s: "v0=" + s, lambda s: s[:-1], lambda s: s + " ", lambda s: ""])
def test_other_form_of_the_signature_is_refused(change) -> None:
    signature = change(sign(str(NOW).encode(), BODY, SECRET.encode()).decode())
    assert not sdk_takes(str(NOW), signature, BODY.decode(), SECRET)
    assert not ours_takes(str(NOW), signature, BODY.decode(), SECRET)


@given(
    age=st.integers(-70, 310),
    body=st.text(max_size=200),
    secret=st.text("abcxyz_é", min_size=1, max_size=20),
    signed_body=st.text(max_size=200) | st.none(),
    signed_with=st.text("abcxyz_é", min_size=1, max_size=20) | st.none(),
    decimals=st.floats(0, 0.999),
)
def test_verify_agrees_with_the_sdk(age, body, secret, signed_body, signed_with, decimals) -> None:
    try:
        (body + (signed_body or "")).encode()
    except UnicodeEncodeError:
        return
    timestamp = str(NOW - age)
    text = body if signed_body is None else signed_body
    signature = sign(timestamp.encode(), text.encode(), (signed_with or secret).encode()).decode()
    now = NOW + decimals
    expected = sdk_takes(timestamp, signature, body, secret, now)
    assert ours_takes(timestamp, signature, body, secret, now) is expected


def test_any_of_several_secrets_may_sign() -> None:
    timestamp = str(NOW).encode()
    for secret in (b"wss_old", b"wss_new"):
        assert verify(timestamp, sign(timestamp, BODY, secret), BODY, [b"wss_old", b"wss_new"], NOW) is None
    other = sign(timestamp, BODY, b"wss_other")
    assert verify(timestamp, other, BODY, [b"wss_old", b"wss_new"], NOW) == "invalid signature"


def test_empty_secret_signs_nothing() -> None:
    timestamp = str(NOW).encode()
    empty = sign(timestamp, BODY, b"")
    assert verify(timestamp, empty, BODY, [b""], NOW) == "missing signing secret"
    assert verify(timestamp, empty, BODY, [], NOW) == "missing signing secret"
    assert verify(timestamp, empty, BODY, [b"", b"wss_a"], NOW) == "invalid signature"


def test_checks_have_the_order_of_the_sdk() -> None:
    assert verify(None, None, BODY, [], NOW) == "missing timestamp"
    assert verify(b"x", None, BODY, [], NOW) == "missing signature"
    assert verify(b"x", b"y", BODY, [], NOW) == "missing signing secret"
    assert verify(b"x", b"y", BODY, [b"s"], NOW) == "timestamp is not an integer"
    assert verify(b"1", b"y", BODY, [b"s"], NOW) == "too old"
    assert verify(str(NOW).encode(), b"y", BODY, [b"s"], NOW) == "invalid signature"


def test_headers_that_crash_the_sdk_are_refused() -> None:
    timestamp = str(NOW).encode()
    assert verify(timestamp, "é".encode() * 32, BODY, [b"s"], NOW) == "header is not ASCII"
    digits = "١٧٦٧٢٢٥٦٠٠".encode()
    assert verify(digits, sign(digits, BODY, b"s"), BODY, [b"s"], NOW) == "header is not ASCII"


def test_body_of_any_bytes_can_be_signed() -> None:
    timestamp = str(NOW).encode()
    body = b"\xff\xfe\x00"
    assert verify(timestamp, sign(timestamp, body, b"s"), body, [b"s"], NOW) is None
    assert verify(timestamp, sign(timestamp, body, b"s"), b"\xff\xfe\x01", [b"s"], NOW) == "invalid signature"
