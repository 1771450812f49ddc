"""A Kafka that wants TLS and SASL, and a Postgres that wants TLS: the whole way through both; and who is refused."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
import pytest
import trustme
from aiokafka.errors import KafkaError
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from pydantic import SecretStr

from everyrun.embedded import process
from everyrun.embedded.kafka import EmbeddedKafka
from everyrun.embedded.state import free_port
from everyrun.log import topics
from everyrun.log.cloudevents import record, timestamp
from everyrun.log.events import BatchSubmitted
from everyrun.log.producer import Producer
from everyrun.settings import Settings
from everyrun.store.migrate import MigrationError, migrate
from tests.conftest import eventually
from tests.integration.services import ServiceProcess
from tests.integration.test_bridge import SECRET, post, webhook

pytestmark = pytest.mark.stack
PASSWORD = "planted-kafka-password"


@dataclass
class Authority:
    """A certificate authority of the test, and PEM files as Kafka, Postgres and we take them."""

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self._own = trustme.CA()
        self.ca = self.folder / "ca.pem"
        self._own.cert_pem.write_to_path(str(self.ca))

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate for a host or a user, and its key as PKCS #8, the only form that Kafka reads."""
        leaf = self._own.issue_cert(name)
        cert, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        private = load_pem_private_key(leaf.private_key_pem.bytes(), None)
        key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        key.chmod(0o600)
        return cert, key


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "authority")


@dataclass
class Broker:
    """The broker's two addresses: one with SASL_SSL, one that wants a certificate of the client."""

    sasl: str
    mutual: str


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Broker]:
    folder = tmp_path_factory.mktemp("kafka-tls")
    cert, key = authority.issue("127.0.0.1")
    store = folder / "broker.pem"
    store.write_bytes(key.read_bytes() + cert.read_bytes())
    port, mutual, controller = free_port(), free_port(), free_port()
    listeners = f"SASL_SSL://127.0.0.1:{port},SSL://127.0.0.1:{mutual}"
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    properties = {
        "listeners": f"{listeners},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": listeners,
        "listener.security.protocol.map": "SASL_SSL:SASL_SSL,SSL:SSL,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "SSL",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512,SCRAM-SHA-256",
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": scram,
        "listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config": scram,
        "listener.name.ssl.ssl.client.auth": "required",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(store),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority.ca),
    }
    users = [f"{kind}=[name=everyrun,password={PASSWORD}]" for kind in ("SCRAM-SHA-512", "SCRAM-SHA-256")]
    kafka = EmbeddedKafka(folder / "data", port, controller, properties=properties, scram=users)
    kafka.prepare()
    child = process.start(kafka.command(), log=folder / "kafka.log", env=os.environ)
    try:
        yield Broker(f"127.0.0.1:{port}", f"127.0.0.1:{mutual}")
    finally:
        child.kill()
        child.wait()


@pytest.fixture(scope="module")
async def secure(broker: Broker, authority: Authority) -> Settings:
    """Settings with which the broker lets us in; it answers, and has the topics."""
    settings = Settings(
        kafka_bootstrap=broker.sasl,
        kafka_security_protocol="SASL_SSL",
        kafka_username="everyrun",
        kafka_password=SecretStr(PASSWORD),
        kafka_ca_file=authority.ca,
    )
    await _answering(settings)
    await topics.create(settings)
    return settings


async def _answering(settings: Settings) -> None:
    async def answers() -> bool:
        try:
            return bool(await topics.cluster_id(settings))
        except (KafkaError, OSError):
            return False

    await eventually(answers, "the broker with TLS answers", 90)


class TlsFront:
    """A Postgres that takes nobody without TLS: the wheel's server has none, so this speaks it in front of it."""

    SSL_REQUEST = bytes.fromhex("0000000804d2162f")

    def __init__(self, context: ssl.SSLContext, behind: int) -> None:
        self._context = context
        self._behind = behind
        self._pipes: set[asyncio.Task[None]] = set()
        self.refused = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from the request for TLS to its end."""
        try:
            if await reader.readexactly(8) != self.SSL_REQUEST:
                self.refused += 1
                return
            writer.write(b"S")
            await writer.start_tls(self._context)
            server, to_server = await asyncio.open_connection("127.0.0.1", self._behind)
            pipes = [asyncio.create_task(_pipe(*ends)) for ends in ((reader, to_server), (server, writer))]
            self._pipes.update(pipes)
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
            to_server.close()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while part := await reader.read(1 << 16):
            writer.write(part)
            await writer.drain()


@pytest.fixture(scope="module")
async def front(authority: Authority, postgres: Callable[[str], str]) -> AsyncIterator[tuple[TlsFront, int]]:
    """A Postgres with TLS, and its port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("localhost"))
    front = TlsFront(context, urlsplit(postgres("everyrun")).port or 0)
    async with await asyncio.start_server(front.serve, "127.0.0.1", 0) as server:
        yield front, server.sockets[0].getsockname()[1]


@pytest.fixture
def tls_postgres(front: tuple[TlsFront, int], database: str) -> Callable[[str], str]:
    """The dsn of a fresh database behind TLS, with what is to be behind its ``?``."""
    parts = urlsplit(database)

    def dsn(more: str) -> str:
        address = f"{parts.username}:{parts.password}@localhost:{front[1]}"
        return urlunsplit(("postgresql", address, parts.path, more, ""))

    return dsn


def _environment(settings: Settings) -> dict[str, Any]:
    return {
        "EVERYRUN_WEBHOOK_SECRETS": SECRET,
        "EVERYRUN_KAFKA_SECURITY_PROTOCOL": settings.kafka_security_protocol,
        "EVERYRUN_KAFKA_USERNAME": settings.kafka_username,
        "EVERYRUN_KAFKA_PASSWORD": PASSWORD,
        "EVERYRUN_KAFKA_CA_FILE": settings.kafka_ca_file,
    }


async def test_from_a_batch_and_a_webhook_to_a_row_over_tls_sasl_and_tls(
    secure: Settings, authority: Authority, tls_postgres: Callable[[str], str], tmp_path: Path
) -> None:
    dsn = tls_postgres(f"sslmode=verify-full&sslrootcert={authority.ca}")
    await asyncio.to_thread(migrate, dsn)
    settings = secure.model_copy(update={"postgres_dsn": SecretStr(dsn)})
    started = [
        ServiceProcess(name, tmp_path, settings, **_environment(settings), EVERYRUN_DATA_DIR=tmp_path / "data")
        for name in ("processor", "bridge")
    ]
    try:
        for service in started:
            await service.ready()
        submitted = BatchSubmitted(
            submission_id="sub_1",
            chunk="sub_1/1",
            attempt=1,
            batch_id="b",
            workflow_id="workflow_1",
            workflow_version=None,
            priority=90,
            evidence="answer",
            submitted_at="2026-01-01T00:00:00.000Z",
            inputs=[],
        )
        async with Producer(settings, compression="zstd") as producer:
            await producer.append(
                [record("batches", submitted, key="b", id="1", source="/test", time=timestamp(1_767_225_600))]
            )
        async with httpx.AsyncClient(timeout=30) as http:
            assert (await post(http, started[1].url, webhook("r1"))).status_code == 200
        connection = await asyncpg.connect(dsn)

        async def there() -> bool:
            runs = await connection.fetchval("select count(*) from everyrun.unmatched_runs where run_id = 'r1'")
            return bool(runs == 1 and await connection.fetchval("select count(*) from everyrun.batches"))

        await eventually(there, "the batch and the run are in the tables", 60)
        await connection.close()
    finally:
        for service in started:
            service.kill()
    assert PASSWORD not in "".join(service.log.read_text() for service in started)


async def test_other_ways_in_and_who_is_refused(
    secure: Settings, broker: Broker, authority: Authority, tmp_path
) -> None:
    assert await topics.cluster_id(secure.model_copy(update={"kafka_sasl_mechanism": "SCRAM-SHA-256"}))
    cert, key = authority.issue("client")
    mutual = {"kafka_bootstrap": broker.mutual, "kafka_security_protocol": "SSL"}
    own = {"kafka_cert_file": cert, "kafka_key_file": key}
    assert await topics.cluster_id(secure.model_copy(update=mutual | own))
    stranger = Authority(tmp_path / "stranger")
    refused: list[dict[str, Any]] = [
        {"kafka_password": SecretStr("wrong")},
        {"kafka_ca_file": stranger.ca},
        {"kafka_ca_file": None},
        {"kafka_security_protocol": "SSL"},
        mutual,
    ]
    for change in refused:
        with pytest.raises((KafkaError, OSError)):
            await topics.cluster_id(secure.model_copy(update=change))


@pytest.mark.parametrize("mode", ["", "sslmode=require", "sslmode=prefer"])
async def test_migrations_reach_a_postgres_with_tls(tls_postgres: Callable[[str], str], mode: str) -> None:
    await asyncio.to_thread(migrate, tls_postgres(mode))


async def test_migrations_and_connections_check_the_certificate(
    tls_postgres: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everyrun.store.migrate.WAIT", "1s")
    stranger = Authority(tmp_path / "stranger")
    dsn = tls_postgres(f"sslmode=verify-full&sslrootcert={stranger.ca}")
    with pytest.raises(OSError, match="certificate"):
        await asyncpg.connect(dsn)
    with pytest.raises(MigrationError, match="certificate"):
        await asyncio.to_thread(migrate, dsn)


async def test_who_wants_no_tls_is_refused(
    front: tuple[TlsFront, int], tls_postgres: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everyrun.store.migrate.WAIT", "1s")
    with pytest.raises(MigrationError):
        await asyncio.to_thread(migrate, tls_postgres("sslmode=disable"))
    assert front[0].refused > 0


@pytest.mark.parametrize("mode", ["", "?sslmode=prefer"])
async def test_migrations_reach_a_postgres_without_tls(database: str, mode: str) -> None:
    await asyncio.to_thread(migrate, database.partition("?")[0] + mode)
