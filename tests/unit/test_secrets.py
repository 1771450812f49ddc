"""Secrets are checked before use, and no library's error text shows them."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from everyrun.cli import app as command_line
from everyrun.doctor.ask_extend import ask_extend
from everyrun.extend.client import Extend, ExtendError
from everyrun.redact import describe, remember
from everyrun.settings import Settings, SettingsError, load
from everyrun.submission.dispatch.classify import Returned, classify_failure

#: Too short to be recognized by its form.
KEY = "sk_live_0123"
SECRETS = {
    "EXTEND_API_KEY": "extend_api_key",
    "EVERYRUN_API_TOKEN": "api_token",
    "EVERYRUN_WEBHOOK_SECRETS": "webhook_secrets",
    "EVERYRUN_KAFKA_PASSWORD": "kafka_password",
    "EVERYRUN_KAFKA_KEY_PASSWORD": "kafka_key_password",
    "EVERYRUN_POSTGRES_DSN": "postgres_dsn",
    "EVERYRUN_REPLAY_SECRET": "replay_secret",
    "EXTEND_WORKSPACE_ID": "extend_workspace_id",
    "EVERYRUN_KAFKA_USERNAME": "kafka_username",
}


def plain(settings: Settings, name: str) -> str:
    value = getattr(settings, name)
    first = value[0] if isinstance(value, list) else value
    return first if isinstance(first, str) else str(first.get_secret_value())


@pytest.mark.parametrize("variable", SECRETS)
def test_whitespace_around_a_secret_is_stripped(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, " \ta-secret-of-some-length\r\n")
    assert plain(load(), SECRETS[variable]) == "a-secret-of-some-length"


@pytest.mark.parametrize("inside", ["\n", "\r", "\x00", "\x7f", "\u200b", "\ufeff"])
@pytest.mark.parametrize("variable", SECRETS)
def test_invisible_character_in_a_secret_is_refused_without_showing_it(
    variable: str, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if inside == "\x00":
        # An environment variable cannot hold a NUL, but a stack's settings file may.
        with pytest.raises(SettingsError, match=variable) as refused:
            load(**{SECRETS[variable]: f"some-secret{inside}of-some-length"})
    else:
        monkeypatch.setenv(variable, f"some-secret{inside}of-some-length")
        with pytest.raises(SettingsError, match=variable) as refused:
            load()
    assert "some-secret" not in str(refused.value)
    assert "of-some-length" not in str(refused.value)
    assert "at position 12" in str(refused.value)


def test_each_webhook_secret_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERYRUN_WEBHOOK_SECRETS", "wss_first ,\n wss_second\n")
    assert [secret.get_secret_value() for secret in load().webhook_secrets] == ["wss_first", "wss_second"]
    monkeypatch.setenv("EVERYRUN_WEBHOOK_SECRETS", "wss_first,wss_\x0bsecond")
    with pytest.raises(SettingsError, match="EVERYRUN_WEBHOOK_SECRETS"):
        load()


@pytest.mark.parametrize("variable", ["EXTEND_API_KEY", "EXTEND_WORKSPACE_ID", "EVERYRUN_API_TOKEN"])
@pytest.mark.parametrize("odd", ["\u201c", "\u00a0x", " x", "ü"])
def test_secret_that_no_header_can_hold_is_refused(variable: str, odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, f"sk_0123456789abcdef{odd}")
    with pytest.raises(SettingsError, match=f"{variable}.*at position 20") as refused:
        load()
    assert "0123" not in str(refused.value)


def test_service_refuses_such_a_key_without_printing_it() -> None:
    env = {
        "EXTEND_API_KEY": "sk_live\n_0123",
        "EVERYRUN_POSTGRES_DSN": "postgresql://u:p@127.0.0.1:1/x",
        "EVERYRUN_KAFKA_BOOTSTRAP": "127.0.0.1:1",
    }
    code = "from everyrun.submission.app import main; main()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert ended.returncode == 2
    assert "EXTEND_API_KEY" in ended.stderr
    assert "live" not in ended.stderr + ended.stdout


async def listening() -> tuple[str, asyncio.Server]:
    """Yield the address of a server that accepts connections and answers nothing."""

    async def answer(_reader: object, _writer: object) -> None: ...

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", server


async def test_request_refused_by_the_client_is_not_in_doubt_and_hides_the_key() -> None:
    url, server = await listening()
    async with httpx.AsyncClient(base_url=url, headers={"x-extend-workspace-id": KEY + "\n"}) as http:
        with pytest.raises(httpx.LocalProtocolError) as refused:
            await http.post("/workflow_runs/batch", content=b"{}")
    server.close()
    assert KEY in str(refused.value)
    verdict = classify_failure(refused.value)
    assert isinstance(verdict, Returned)
    assert KEY not in verdict.reason
    assert "LocalProtocolError" in verdict.reason


async def test_errors_of_reads_and_the_doctor_hold_no_header() -> None:
    url, server = await listening()
    wrong = Settings.model_construct(
        **{
            **Settings(extend_base_url=url, extend_api_key=SecretStr("sk_other")).__dict__,
            "extend_workspace_id": KEY + "\n",
        }
    )
    async with Extend(wrong) as extend:
        with pytest.raises(ExtendError) as failed:
            await extend.get_run("workflow_run_1", within=0.1)
    facts = await ask_extend(wrong, [])
    server.close()
    assert "LocalProtocolError" in str(failed.value)
    assert "LocalProtocolError" in facts.key.message
    assert KEY not in str(failed.value) + facts.key.message


@pytest.mark.parametrize("written", [str, repr, json.dumps, lambda text: f"user:{text}@", ascii])
def test_description_of_an_error_hides_known_secrets(written: object) -> None:
    secret = 'pa"ss\\wörd'
    remember([secret])
    said = describe(OSError(f"cannot log in with {written(secret)}"))  # type: ignore[operator]
    assert "wörd" not in said
    assert "ss" not in said.replace("cannot", "")
    assert said.startswith("OSError: cannot log in with ")


def test_unexpected_error_prints_no_secret(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EVERYRUN_KAFKA_PASSWORD", "planted-in-an-error")

    def command() -> None:
        raise LookupError(f"no such thing: {load().kafka_password.get_secret_value()}")

    monkeypatch.setattr(command_line, "app", command)
    with pytest.raises(SystemExit):
        command_line.main()
    said = capsys.readouterr().err
    assert "LookupError" in said
    assert "planted" not in said


def test_doctor_names_the_variable_of_a_bad_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EXTEND_API_KEY", "sk_live_01\n23")
    ended = CliRunner().invoke(command_line.app, ["doctor", "--data-dir", str(tmp_path)])
    logging.disable(logging.NOTSET)
    assert ended.exit_code == 2
    assert "EXTEND_API_KEY" in ended.output
    assert "sk_live" not in ended.output
