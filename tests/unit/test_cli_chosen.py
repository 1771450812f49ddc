"""Settings of the environment win over a stack's folder, and no secret of a stack goes elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import respx
import typer

from everyrun.cli import backends, chosen, client, doctor, exits, token
from everyrun.embedded import state
from everyrun.settings import load
from tests.unit.cli import everyrun

STACK = {
    **{f"{name}_url": f"http://127.0.0.1:{port}" for port, name in enumerate(("submission", "query", "bridge"), 1)},
    **{f"{name}_url": f"http://127.0.0.1:{port}" for port, name in enumerate(("reconciler", "replay"), 4)},
    "notifier_url": "http://127.0.0.1:10",
    "processor_urls": "http://127.0.0.1:6",
    "emulator_url": "http://127.0.0.1:7",
    "extend_base_url": "http://127.0.0.1:7",
    "extend_api_key": "sk_emulator",
    "api_token": "ert_of_the_administrator",
    "webhook_secret": "wss_stack",
    "kafka_bootstrap": "127.0.0.1:8",
    "postgres_dsn": "postgresql://u:p@127.0.0.1:9/stack",
    "workflow_id": "workflow_invoices",
}
HERE = Path("/stack")
NAMES = ("API_TOKEN", "SUBMISSION_URL", "QUERY_URL", "EXTEND_BASE_URL", "POSTGRES_DSN", "KAFKA_BOOTSTRAP")


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A running stack in a folder, and nothing set."""
    running = dict(STACK)
    for module in (chosen, state):
        monkeypatch.setattr(module, "read_endpoints", lambda folder: running)
    for name in ("EXTEND_API_KEY", "EXTEND_WORKSPACE_ID", *(f"EVERYRUN_{name}" for name in NAMES)):
        monkeypatch.delenv(name, raising=False)
    return running


def test_without_anything_set_it_is_the_stack(stack: dict[str, Any]) -> None:
    target = client.find(HERE)
    assert (target.api_token, target.workflow_id) == (STACK["api_token"], "workflow_invoices")
    assert (target.extend_base_url, target.extend_api_key) == (STACK["extend_base_url"], "sk_emulator")
    assert backends.settings_of(HERE).kafka_bootstrap == "127.0.0.1:8"


def test_a_token_that_is_set_is_the_one_that_is_sent(stack: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERYRUN_API_TOKEN", "ert_read_only_0123456789")
    assert client.find(HERE).api_token == "ert_read_only_0123456789"
    assert backends.settings_of(HERE).api_token.get_secret_value() == "ert_read_only_0123456789"
    assert doctor._settings(HERE)[0].api_token.get_secret_value() == "ert_read_only_0123456789"
    # Not with what is set to nothing, as `EVERYRUN_API_TOKEN= everyrun ...` does.
    monkeypatch.setenv("EVERYRUN_API_TOKEN", "")
    assert client.find(HERE).api_token == STACK["api_token"]


@respx.mock
def test_a_refused_token_is_named_by_where_it_came_from(stack: dict[str, Any]) -> None:
    respx.get("http://127.0.0.1:1/v1/submissions").respond(403, json={"code": "FORBIDDEN", "message": "not for this"})
    addresses = {"EVERYRUN_SUBMISSION_URL": "http://127.0.0.1:1", "EVERYRUN_QUERY_URL": "http://127.0.0.1:2"}
    refused = everyrun("list", **addresses)
    assert refused.exit_code == exits.ERROR
    assert "the token is that of EVERYRUN_API_TOKEN" in refused.output


@pytest.mark.parametrize(
    ("variable", "name", "value"),
    [
        ("EVERYRUN_POSTGRES_DSN", "postgres_dsn", "postgresql://u:p@127.0.0.1:1/mine"),
        ("EVERYRUN_KAFKA_BOOTSTRAP", "kafka_bootstrap", "kafka.example:9092"),
    ],
)
def test_addresses_that_are_set_win(
    stack: dict[str, Any], monkeypatch: pytest.MonkeyPatch, variable: str, name: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    for settings in (backends.settings_of(HERE), doctor._settings(HERE)[0]):
        found = getattr(settings, name)
        assert getattr(found, "get_secret_value", lambda found=found: found)() == value
    assert token._dsn(HERE) == (value if name == "postgres_dsn" else STACK["postgres_dsn"])


@pytest.mark.parametrize(
    ("address", "secret"),
    [
        ("EVERYRUN_SUBMISSION_URL", "EVERYRUN_API_TOKEN"),
        ("EVERYRUN_QUERY_URL", "EVERYRUN_API_TOKEN"),
        ("EVERYRUN_EXTEND_BASE_URL", "EXTEND_API_KEY"),
    ],
)
def test_a_secret_of_the_stack_is_not_sent_elsewhere(
    stack: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    address: str,
    secret: str,
) -> None:
    monkeypatch.setenv(address, "https://elsewhere.example")
    with pytest.raises(typer.Exit):
        client.find(HERE)
    assert f"set {secret} too" in capsys.readouterr().err
    monkeypatch.setenv(secret, "a-secret-of-some-length")
    target = client.find(HERE)
    assert "https://elsewhere.example" in (target.submission_url, target.query_url, target.extend_base_url)
    assert "a-secret-of-some-length" in (target.api_token, target.extend_api_key)


def test_the_key_of_extend_is_not_sent_to_an_emulator(stack: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.find(HERE).upload_note == ""
    monkeypatch.setenv("EXTEND_API_KEY", "sk_real")
    target = client.find(HERE)
    assert target.extend_api_key == "sk_emulator"
    assert "EXTEND_API_KEY is set and not used" in target.upload_note
    stack |= {"emulator_url": "", "extend_base_url": load().extend_base_url, "extend_api_key": "sk_of_the_stack"}
    assert client.find(HERE).extend_api_key == "sk_real"
