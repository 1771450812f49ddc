"""Kafka's jars: fetched once from Maven Central, whole or not at all, and kept for every stack of this user."""

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
    """The user's cache folder for Everyrun; ``fallback`` where there is no home that can be written to."""
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
    """The class path of Kafka, its jars kept in ``folder``; fetched when they are not there yet (45 MB, 10 to 60 s).

    Two that fetch at the same time: the second waits for the first. Raises PlatformError where they cannot be had.
    """
    kept = folder / f"kafka-{KAFKA}"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.exists():
                _fetch(folder / "fetching", kept)
    return f"{kept}/modules/*:{kept}/jars/*"


def _fetch(work: Path, kept: Path) -> None:
    """Fetch into a folder of its own and rename it at the end.

    jgo writes a jar where it stays and takes for whole what lies there, so an interrupted fetch must leave nothing that
    a later one would find (jgo 3.2.0, maven/_resolver.py).
    """
    try:
        from jgo.env import EnvironmentBuilder
        from jgo.maven import MavenContext
    except ImportError as error:
        raise PlatformError(
            f"The embedded Kafka needs the extra 'embedded' (pip install 'everyrun[embedded]'): {error}. "
            "Or use your own Kafka: set EVERYRUN_KAFKA_BOOTSTRAP."
        ) from None
    shutil.rmtree(work, ignore_errors=True)
    try:
        context = MavenContext(repo_cache=work / "repository")
        built = EnvironmentBuilder(context, cache_dir=work / "built").from_endpoint(_COORDINATES)
        Path(built.path).rename(kept)
    except Exception as error:
        raise PlatformError(
            f"Kafka's jars could not be fetched from Maven Central ({describe(error)}). "
            "Check the network, or use your own Kafka: set EVERYRUN_KAFKA_BOOTSTRAP."
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
