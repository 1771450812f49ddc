"""Secrets do not reach log lines or stored errors."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest
import structlog
from pydantic import SecretStr

from everyrun import telemetry
from everyrun.extend.client import read_error
from everyrun.health import Health
from everyrun.redact import describe, redact
from everyrun.settings import Settings

DSN = "postgresql://everyrun:pl%40nted-1@db:5432/everyrun?sslmode=require"
SETTINGS = Settings(
    postgres_dsn=SecretStr(DSN),
    extend_api_key=SecretStr("planted-2"),
    webhook_secrets=[SecretStr("planted-3"), SecretStr('pla"nted-4')],
    kafka_password=SecretStr("planted-5"),
    api_token=SecretStr("planted-6-and-longer"),
)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("cannot fetch https://b.s3/x.pdf?X-Amz-Signature=s&y=1: 403", "cannot fetch https://b.s3/x.pdf?[hidden] 403"),
        ("https://u:p@h/x", "https://[hidden]@h/x"),
        ("postgresql://everyrun:p@db/everyrun", "postgresql://[hidden]@db/everyrun"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [hidden]"),
        ("ert_0123456789ab_" + "0" * 64, "ert_0123456789ab_[hidden]"),
        ("key sk_" + "a" * 20 + " is wrong", "key sk_[hidden] is wrong"),
        ("duplicate key\nDETAIL:  Key (file)=(x) exists.\nHINT: y", "duplicate key\nDETAIL: [hidden]\nHINT: y"),
        ("https://example.com/a is no secret; nor is a?b", "https://example.com/a is no secret; nor is a?b"),
        ("ert_0123456789ab is a token's id", "ert_0123456789ab is a token's id"),
    ],
)
def test_text_that_looks_like_a_secret_is_hidden(said: str, kept: str) -> None:
    assert redact(said) == kept


def test_settings_list_their_secrets() -> None:
    found = SETTINGS.secrets()
    assert {"planted-2", "planted-3", 'pla"nted-4', "planted-5", "planted-6-and-longer", "pl@nted-1", DSN} == set(found)
    assert not any(secret in repr(SETTINGS) for secret in found)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Return the standard error of a service with these settings."""
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(logging, "raiseExceptions", True)
    telemetry.configure("test", "info", SETTINGS.secrets())
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def test_log_lines_hold_no_secret(written: io.StringIO) -> None:
    local = "planted-in-a-local-variable"
    link = "https://files.example/x?signature=planted-in-a-link"
    for secret in SETTINGS.secrets():
        structlog.get_logger("ours").warning("said", what=f"it is {secret}", nested={"a": [secret]}, link=link)
        logging.getLogger("theirs").error("it is %s", secret)
    try:
        raise ValueError(
            f'{SETTINGS.secrets()} {link}\nDETAIL:  Failing row contains ("planted-in-a-row").', len(local)
        )
    except ValueError:
        structlog.get_logger("ours").exception("failed")
        logging.getLogger("theirs").exception("failed too")
    text = written.getvalue()
    assert "nted-" not in text, text
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) == 2 * len(SETTINGS.secrets()) + 2
    assert lines[-1]["exception"][0]["exc_type"] == "ValueError"
    assert "locals" not in lines[-1]["exception"][0]["frames"][0]
    assert lines[0]["link"] == "https://files.example/x?[hidden]"


@pytest.mark.parametrize(
    "body",
    [
        b'{"code": "X", "message": "cannot fetch https://f/x.pdf?sig=planted"}',
        b'{"error": {"code": "X", "message": "user https://me:planted@f/x.pdf"}}',
        b"<html>https://f/x.pdf?sig=planted",
        b'["https://f/x.pdf?sig=planted"]',
    ],
)
def test_errors_of_extend_are_kept_without_signed_links(body: bytes) -> None:
    code, message = read_error(body)
    assert "planted" not in code + message
    assert "f/x.pdf" in message


def test_health_shows_no_secret() -> None:
    health = Health("database")
    health.not_ready("database", f"cannot connect to {DSN}")
    assert b"nted-1" not in health.answer("/readyz")[1]


def test_an_error_of_kafkas_client_is_readable() -> None:
    """The doctor showed the type twice, and a raw tuple."""

    class KafkaConnectionError(Exception):
        pass

    text = "KafkaConnectionError: Unable to bootstrap from [('127.0.0.1', 9092, <AddressFamily.AF_INET: 2>)]"
    assert describe(KafkaConnectionError(text)) == ("KafkaConnectionError: Unable to bootstrap from [127.0.0.1:9092]")
