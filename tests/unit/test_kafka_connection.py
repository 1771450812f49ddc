"""One function turns the settings into Kafka's connection arguments."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme
from pydantic import SecretStr

from everyrun.log.connection import connection
from everyrun.processor.faust_adapter import faust_app
from everyrun.settings import Settings, SettingsError, load

SERVICES = Path(__file__).parents[2] / "services" / "everyrun"
SASL = {"kafka_bootstrap": "k:9092", "kafka_security_protocol": "SASL_SSL"}
WHO = {"kafka_username": "u", "kafka_password": SecretStr("p")}


def test_only_one_module_passes_the_brokers_to_a_client() -> None:
    naming = [p.name for p in SERVICES.rglob("*.py") if "bootstrap_servers" in p.read_text()]
    assert naming == ["connection.py"]


def test_the_default_is_a_plain_connection() -> None:
    assert connection(Settings(kafka_bootstrap="k:9092")) == {
        "bootstrap_servers": "k:9092",
        "security_protocol": "PLAINTEXT",
    }


def test_tls_checks_certificate_and_host_name_in_faust_too() -> None:
    settings = load(**SASL, **WHO)
    given = connection(settings)
    context = given["ssl_context"]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert (given["sasl_mechanism"], given["sasl_plain_username"], given["sasl_plain_password"]) == (
        *("SCRAM-SHA-512", "u", "p"),
    )
    faust = faust_app(settings).conf.broker_credentials
    assert (faust.protocol.value, faust.mechanism.value) == ("SASL_SSL", "SCRAM-SHA-512")
    assert (faust.username, faust.password, faust.ssl_context) == ("u", "p", context)
    alone = faust_app(load(kafka_bootstrap="k:9092", kafka_security_protocol="SSL")).conf.broker_credentials
    assert alone.protocol.value == "SSL"


def test_a_client_certificate_is_loaded(tmp_path: Path) -> None:
    leaf = trustme.CA().issue_cert("everyrun")
    cert = tmp_path / "own.pem"
    leaf.private_key_and_cert_chain_pem.write_to_path(str(cert))
    assert connection(load(**SASL, **WHO, kafka_cert_file=cert))["ssl_context"]
    with pytest.raises(OSError, match="no certificate"):
        connection(load(**SASL, **WHO, kafka_ca_file=Path(__file__)))


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({**SASL, "kafka_username": "u"}, "EVERYRUN_KAFKA_PASSWORD"),
        (SASL, "EVERYRUN_KAFKA_USERNAME"),
        ({"kafka_ca_file": "/no/such/file"}, "EVERYRUN_KAFKA_CA_FILE"),
        ({"kafka_security_protocol": "TLS"}, "EVERYRUN_KAFKA_SECURITY_PROTOCOL"),
        ({"kafka_sasl_mechanism": "GSSAPI"}, "EVERYRUN_KAFKA_SASL_MECHANISM"),
    ],
)
def test_invalid_or_missing_settings_are_named(more, named) -> None:
    with pytest.raises(SettingsError, match=named):
        load(**more).need("kafka_bootstrap")
