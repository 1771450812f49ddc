"""Connect to Kafka: brokers, TLS and SASL from the settings, the same for every client."""

from __future__ import annotations

import ssl
from functools import lru_cache
from pathlib import Path
from typing import Any

from everyrun.settings import Settings


def connection(settings: Settings) -> dict[str, Any]:
    """Return the connection arguments for aiokafka's producer, consumer or admin client.

    Raises OSError (ssl.SSLError is one) if a certificate or a key cannot be read.
    """
    given: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_bootstrap,
        "security_protocol": settings.kafka_security_protocol,
    }
    context = tls(settings)
    if context is not None:
        given["ssl_context"] = context
    if settings.kafka_security_protocol.startswith("SASL"):
        given["sasl_mechanism"] = settings.kafka_sasl_mechanism
        given["sasl_plain_username"] = settings.kafka_username
        given["sasl_plain_password"] = settings.kafka_password.get_secret_value()
    return given


def tls(settings: Settings) -> ssl.SSLContext | None:
    """Return the TLS context, which checks the broker's certificate and host name; None if the settings use no TLS."""
    if not settings.kafka_security_protocol.endswith("SSL"):
        return None
    password = settings.kafka_key_password.get_secret_value() or None
    return _context(settings.kafka_ca_file, settings.kafka_cert_file, settings.kafka_key_file, password)


@lru_cache(maxsize=4)
def _context(ca: Path | None, cert: Path | None, key: Path | None, password: str | None) -> ssl.SSLContext:
    # Cached: loading the system's certificate authorities takes longer than connecting.
    context = ssl.create_default_context(cafile=ca)
    if cert is not None:
        context.load_cert_chain(cert, key, password)
    return context
