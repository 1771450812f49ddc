"""Running our services as processes of a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from everyrun.settings import Settings
from tests.conftest import eventually, free_port


class ServiceProcess:
    """``python -m everyrun.NAME`` with settings by environment; it can be waited for, ended and killed."""

    def __init__(self, name: str, folder: Path, settings: Settings, **variables: object) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"{name}-{self.port}.log"
        env = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("EVERYRUN_", "EXTEND_"))},
            "EVERYRUN_DATA_DIR": str(folder),
            "EVERYRUN_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
            "EVERYRUN_POSTGRES_DSN": settings.postgres_dsn.get_secret_value(),
            "EVERYRUN_TOPIC_PREFIX": settings.topic_prefix,
            f"EVERYRUN_{name.upper()}_LISTEN": f"127.0.0.1:{self.port}",
            **{key: str(value) for key, value in variables.items()},
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", f"everyrun.{name}"], stdout=log, stderr=log, env=env)

    async def status(self, path: str) -> int:
        """The status of a GET, 0 where there is no answer."""
        try:
            async with httpx.AsyncClient() as http:
                return (await http.get(self.url + path)).status_code
        except httpx.TransportError:
            return 0

    async def ready(self) -> ServiceProcess:
        """Wait until readyz says 200."""

        async def is_ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            return await self.status("/readyz") == 200

        await eventually(is_ready, f"{self.log.name} is ready", 90)
        return self

    def terminate(self) -> float:
        """SIGTERM; how many seconds it took to end, with status 0."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=20) == 0, self.log.read_text()[-3000:]
        return time.monotonic() - began

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        self.process.kill()
        self.process.wait()
