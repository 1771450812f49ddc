"""Commands that use Kafka and Postgres end with a message, whatever the client libraries raise."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest
import typer
from aiokafka.errors import KafkaConnectionError

from everyrun.cli import backends, rebuild
from everyrun.store.pool import POSTGRES_AWAY

UNAVAILABLE = [*POSTGRES_AWAY, asyncpg.ConnectionDoesNotExistError, KafkaConnectionError]


@pytest.mark.parametrize("error", UNAVAILABLE)
@pytest.mark.parametrize(
    "run", [rebuild.run_resumable, lambda work: backends.run(lambda: work)], ids=["rebuild", "other"]
)
def test_unavailable_store_is_reported(
    run: Callable[[Any], Any], error: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    async def work() -> None:
        raise error("cannot switch to state 15")

    with pytest.raises(typer.Exit) as ended:
        run(work())
    assert ended.value.exit_code == 1
    assert "everyrun:" in (message := capsys.readouterr().err)
    assert error.__name__ in message


def test_library_warnings_are_printed_without_a_traceback() -> None:
    """asyncpg's pool logs a warning for each attempt to reach an unavailable Postgres."""
    code = """
import logging
from everyrun.cli.console import log_in_lines

log_in_lines()
try:
    raise ConnectionRefusedError("port 5432")
except OSError:
    logging.getLogger("asyncpg.pool").warning("retrying", exc_info=True)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == "retrying\n"


def test_ctrl_c_during_an_import_is_silent_and_ends_the_process_by_the_signal() -> None:
    code = "from everyrun.cli import app; raise KeyboardInterrupt"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")


def test_ctrl_c_in_a_command_is_exit_code_130() -> None:
    code = """
from everyrun.cli import app

def command():
    raise KeyboardInterrupt

app.app = command
app.main()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "")
