"""Run a real PgBouncer in front of the Postgres of the tests, if one is installed (Debian's package pgbouncer)."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from everyrun.embedded import process
from everyrun.embedded.postgres import EmbeddedPostgres
from everyrun.embedded.state import free_port

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

needs_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed: apt-get install pgbouncer")


@contextmanager
def pgbouncer(postgres: EmbeddedPostgres, mode: str) -> Iterator[int]:
    """Run a PgBouncer in a pool mode (session, transaction, statement), and yield its port."""
    port = free_port()
    behind = urlsplit(postgres.dsn("everyrun"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # PgBouncer refuses to run as root, so another user must be able to read this folder.
        folder.chmod(0o755)
        config = folder / "pgbouncer.ini"
        config.write_text(
            "[databases]\n"
            f"* = host={behind.hostname} port={behind.port} user={behind.username} password={behind.password}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = {mode}\nmax_client_conn = 200\ndefault_pool_size = 60\n"
        )
        started = process.start(
            [str(PGBOUNCER), str(config)], log=folder / "log", env=os.environ, user=postgres.user, cwd=Path("/")
        )
        try:
            yield port
        finally:
            started.kill()
            started.wait()


def through(dsn: str, port: int) -> str:
    """Return the dsn that goes through the PgBouncer on a local port."""
    parts = urlsplit(dsn)
    return urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}"))
