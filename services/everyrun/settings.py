"""Define every setting of every service. Each is read from an environment variable and checked at start.

The setting ``some_name`` is read from ``EVERYRUN_SOME_NAME``, except Extend's own ``EXTEND_API_KEY`` and
``EXTEND_WORKSPACE_ID``. ``load()`` raises :class:`SettingsError`, which names the variable that is wrong or missing and
says what to do.

This module has over 300 lines because it is a list: one setting after the other, with the checks of their values.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, FilePath, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from everyrun.errors import Invalid
from everyrun.redact import passwords_of, remember

#: Plain http is allowed only if the port is written too, so that it is a decision and not a slip.
_ORIGIN = re.compile(
    r"(https://[^\s/?#@:]+(:\d+)?|https?://([^\s/?#@:]+|\[[0-9a-fA-F:.]+\]):\d+|https://\[[0-9a-fA-F:.]+\])/?"
)

Plan = Literal["payg", "scale", "enterprise"]

#: Requests per second in each of the categories GET, WRITE and RUN, by plan (docs.extend.ai/general/rate-limits).
PLAN_REQUESTS_PER_SECOND: dict[Plan, float] = {"payg": 10.0, "scale": 25.0, "enterprise": 75.0}


class SettingsError(Invalid):
    """A setting is wrong or missing; the text names its environment variable and says what to do."""


def _list_of(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _plain(value: Any) -> Any:
    """Strip whitespace around a text or a secret. Raises ValueError, without the value, for invisible characters.

    The HTTP client would refuse a key with a line break, and its message would hold the key.
    """
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, SecretStr):
        return SecretStr(_plain(value.get_secret_value()))
    if not isinstance(value, str):
        return value
    text = value.strip()
    for place, character in enumerate(text, 1):
        if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp"):
            what = unicodedata.name(character, f"U+{ord(character):04X}")
            raise ValueError(f"has an invisible character ({what}) at position {place} of {len(text)}; remove it")
    return text


CommaList = Annotated[list[str], NoDecode]


class Settings(BaseSettings):
    """The settings of one installation. Times are in seconds, sizes in bytes, unless a name says otherwise."""

    model_config = SettingsConfigDict(env_prefix="EVERYRUN_", extra="ignore", hide_input_in_errors=True)

    # --- addresses and credentials
    data_dir: Path = Field(Path(".everyrun"), description="Folder of the embedded stack, where the CLI finds it.")
    kafka_bootstrap: str = Field("", description="Kafka brokers, host:port[,host:port].")
    kafka_replication: int = Field(1, ge=1, description="Replicas of each topic that is created.")
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Protocol to Kafka: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="With SASL: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512."
    )
    kafka_username: str = Field("", description="With SASL: the user.")
    kafka_password: SecretStr = Field(SecretStr(""), description="With SASL: the user's password.")
    kafka_ca_file: FilePath | None = Field(
        None, description="With SSL: PEM file of the authorities for the brokers' certificates. Default: the system's."
    )
    kafka_cert_file: FilePath | None = Field(None, description="With SSL: PEM file of a client certificate, if needed.")
    kafka_key_file: FilePath | None = Field(None, description="PEM file of its key, if not in the certificate's file.")
    kafka_key_password: SecretStr = Field(SecretStr(""), description="Password of the key, if it has one.")
    topic_prefix: str = Field("everyrun.", description="Prefix of every topic name and consumer group.")
    postgres_dsn: SecretStr = Field(SecretStr(""), description="Postgres, in the form that asyncpg and psql accept.")
    extend_base_url: str = Field("https://api.extend.ai", description="Extend's API, without a trailing slash.")
    extend_api_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=AliasChoices("EXTEND_API_KEY", "EVERYRUN_EXTEND_API_KEY", "extend_api_key"),
        description="Extend's API key (sk_...).",
    )
    extend_workspace_id: str = Field(
        "",
        validation_alias=AliasChoices("EXTEND_WORKSPACE_ID", "EVERYRUN_EXTEND_WORKSPACE_ID", "extend_workspace_id"),
        description="Workspace id, needed with an organization's key.",
    )

    # --- our own HTTP services: host:port each
    submission_listen: str = Field("127.0.0.1:8801", description="Address on which the submission service listens.")
    bridge_listen: str = Field("127.0.0.1:8802", description="Address on which the webhook bridge listens.")
    query_listen: str = Field("127.0.0.1:8803", description="Address on which the query service listens.")
    processor_listen: str = Field("127.0.0.1:8804", description="Address of the processor's health and metrics.")
    reconciler_listen: str = Field("127.0.0.1:8805", description="Address of the reconciler's health and metrics.")
    replay_listen: str = Field("127.0.0.1:8806", description="Address on which the replay service listens.")
    keep_alive: int = Field(
        75,
        ge=1,
        description="Time after which idle connections to our services are closed. It must be longer than the idle "
        "timeout of a load balancer in front of them (usually 60), or it answers some requests with 502.",
    )
    submission_url: str = Field("", description="URL of the submission service, for the command line.")
    query_url: str = Field("", description="URL of the query service, for the command line.")
    bridge_url: str = Field("", description="URL of the bridge, for the doctor. Default: its port on this machine.")
    processor_urls: CommaList = Field(
        default_factory=list, description="URLs of the processors, for the doctor, separated by commas."
    )
    reconciler_url: str = Field("", description="URL of the reconciler, for the doctor.")
    replay_url: str = Field("", description="URL of the replay service, for the doctor.")
    webhook_url: str = Field("", description="URL of the bridge as Extend knows it, for the doctor to compare.")
    api_token: SecretStr = Field(
        SecretStr(""),
        description="A token with every scope, valid beside those of `everyrun token`. The command line uses it too. "
        "At least 16 characters.",
    )

    # --- Extend: rate limits and timeouts
    plan: Plan = Field("payg", description="Extend's plan, which sets the requests per second of each category.")
    requests_per_second: float | None = Field(
        None, gt=0, description="Requests per second of each category, instead of the plan's."
    )
    budget_share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Share of the rate limit for each process while the shared budget in Postgres is unavailable.",
    )
    call_timeout: float = Field(300.0, gt=0, description="Timeout of a call to Extend.")

    # --- submission: queue and dispatch
    upload_max_bytes: int = Field(4 << 30, gt=0, description="Maximum size of an upload of inputs.")
    row_max_bytes: int = Field(900_000, gt=0, description="Maximum size of one input, as JSON.")
    chunk_max_inputs: int = Field(1000, ge=1, le=1000, description="Maximum inputs per batch. Extend accepts 1,000.")
    chunk_max_bytes: int = Field(
        900_000, gt=1000, description="Maximum size of a batch, as JSON, so that it fits in one event."
    )
    dispatch_workers: int = Field(4, ge=1, le=64, description="Number of chunks that one process sends at a time.")
    dispatch_deadline: float = Field(
        30.0, gt=0, description="Time after which an attempt whose call has not begun is given up unsent."
    )
    doubt_window: float = Field(
        900.0, gt=0, description="How long to wait for evidence of a call in doubt, after the timeout of the call."
    )
    doubt_resends: int = Field(2, ge=0, description="How often to resend a chunk in doubt before it is held.")
    secrets_kept: float = Field(
        86_400.0, ge=0, description="How long to keep presigned URLs after their submission has settled."
    )
    secrets_kept_unsettled: float = Field(
        30 * 86_400.0,
        ge=0,
        description="How long to keep presigned URLs of a submission that does not settle, after it was submitted. "
        "Inputs that were not sent by then can no longer be sent.",
    )

    # --- bridge
    webhook_secrets: Annotated[list[SecretStr], NoDecode] = Field(
        default_factory=list, description="Signing secrets of the webhook endpoint (wss_...), separated by commas."
    )
    webhook_max_age: int = Field(300, gt=0, description="Maximum age of a webhook, by its signed timestamp.")
    webhook_max_ahead: int = Field(60, ge=0, description="Maximum time by which a webhook is ahead of our clock.")
    webhook_max_bytes: int = Field(
        11 << 20,
        gt=0,
        le=11 << 20,
        description="Maximum size of a webhook's body. As base64 it must fit in a record of 16 MiB.",
    )

    # --- processor
    stalled_after: float = Field(
        120.0,
        gt=0,
        description="Time without a commit after which a processor with waiting records exits, so that it is "
        "restarted. It does not exit while Postgres or Kafka is unavailable.",
    )
    processor_index: int = Field(0, ge=0, description="Number of this processor, if one machine runs several.")

    # --- query
    unmatched_after: float = Field(
        3600.0, ge=0, description="Time from first seeing a run without a known input until it is alarming."
    )

    # --- reconciler
    foreign_runs_kept: float = Field(
        7 * 86_400.0,
        ge=0,
        description="How long the tables keep the content of foreign runs (of other callers in the workspace). Later "
        "they keep only the head. The log keeps everything.",
    )
    signed_url_origins: CommaList = Field(
        default_factory=list,
        description="Allowed origins of signed payload links (https://host[:port]). An origin may lead to a private "
        "network only if it is written with its port, or with an IP address as its host.",
    )
    signed_url_max_bytes: int = Field(64 << 20, gt=0, description="Maximum size of a payload behind a signed link.")
    signed_url_timeout: float = Field(30.0, gt=0, description="Timeout of fetching a signed link.")
    poll_first_after: float = Field(60.0, ge=0, description="Time from sending a batch to its first poll.")
    poll_every: float = Field(60.0, gt=0, description="Shortest time between two polls of an open batch.")
    poll_for: float = Field(
        30 * 86_400.0, gt=0, description="How long to poll a batch, and to sweep its workflow, after it was sent."
    )
    poll_grace: float = Field(
        10.0, ge=0, description="Time after a change of a run during which a poll leaves it to its webhook."
    )
    sweep_every: float = Field(
        300.0, gt=0, description="Time between two sweeps of a workflow. A sweep lists the runs changed since the last."
    )
    sweep_in_doubt_every: float = Field(
        15.0, gt=0, description="The same while a call is in doubt. Such a sweep looks back to before that call."
    )
    sweep_margin: float = Field(
        120.0, ge=0, description="How much further back a sweep looks, because Extend's list may lag and clocks differ."
    )

    # --- deadlines
    overdue_after: float = Field(
        86_400.0,
        gt=0,
        description="Time after which an open input is overdue, from when its batch was sent, or it was submitted.",
    )

    # --- replays
    replay_secret: SecretStr = Field(
        SecretStr(""), description="Secret that signs events sent by `everyrun replay` over HTTP (whsec_..., base64)."
    )
    replay_origins: CommaList = Field(
        default_factory=list,
        description="Origins (https://host[:port]) to which jobs started over HTTP may replay. None by default.",
    )
    archive_to: str = Field("", description="Archive of jobs started over HTTP: a folder, or s3://bucket/prefix.")

    # --- logs
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")

    # Validators with mode="before" run from the last to the first: a list is split before its texts are checked.
    _stripped = field_validator("*", mode="before")(_plain)
    _commas = field_validator(
        "signed_url_origins", "replay_origins", "webhook_secrets", "processor_urls", mode="before"
    )(_list_of)

    @field_validator("extend_api_key", "extend_workspace_id", "api_token", "webhook_secrets")
    @classmethod
    def _fit_for_a_header(cls, value: Any) -> Any:
        for one in value if isinstance(value, list) else [value]:
            text = one.get_secret_value() if isinstance(one, SecretStr) else one
            for place, character in enumerate(text, 1):
                if not "!" <= character <= "~":
                    what = "a space" if character.isspace() else "a character that is not ASCII"
                    raise ValueError(f"has {what} at position {place} of {len(text)}; copy it again")
        return value

    @field_validator("signed_url_origins", "replay_origins")
    @classmethod
    def _origins(cls, value: list[str]) -> list[str]:
        for written in value:
            if not _ORIGIN.fullmatch(written):
                raise ValueError(f"{written!r} is not an origin: use https://host[:port] or http://host:port")
        return value

    @field_validator("api_token")
    @classmethod
    def _not_to_be_guessed(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value()) < 16:
            raise ValueError("must have at least 16 characters; create one with: openssl rand -hex 32")
        return value

    @field_validator(
        "extend_base_url", "submission_url", "query_url", "bridge_url", "webhook_url", "reconciler_url", "replay_url"
    )
    @classmethod
    def _no_trailing_slash(cls, value: str) -> str:
        return value.rstrip("/")

    @field_validator(
        "submission_listen", "bridge_listen", "query_listen", "processor_listen", "reconciler_listen", "replay_listen"
    )
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isdigit() or not 0 <= int(port) <= 65535:
            raise ValueError("must be host:port, for example 127.0.0.1:8801")
        return value

    def need(self, *names: str) -> Settings:
        """Return self. Raises SettingsError, which names the missing settings, if not all of the named ones are set.

        If Kafka is needed and the protocol is SASL, a user and a password are needed too.
        """
        if "kafka_bootstrap" in names and self.kafka_security_protocol.startswith("SASL"):
            names = (*names, "kafka_username", "kafka_password")
        missing = []
        for name in names:
            value = getattr(self, name)
            plain = value.get_secret_value() if isinstance(value, SecretStr) else value
            if not plain:
                missing.append(f"{variable(name)} is not set: {Settings.model_fields[name].description}")
        if missing:
            raise SettingsError("\n".join(missing))
        return self

    def secrets(self) -> list[str]:
        """Return the plain text of every secret, including the password in the dsn, so that they can be hidden."""
        given = [getattr(self, name) for name in type(self).model_fields]
        kept = [one for value in given for one in (value if isinstance(value, list) else [value])]
        plain = [one.get_secret_value() for one in kept if isinstance(one, SecretStr)]
        return [text for text in (*plain, *passwords_of(self.postgres_dsn.get_secret_value())) if text]

    def rate(self) -> float:
        """Return the requests per second that Extend allows in each category."""
        return self.requests_per_second or PLAN_REQUESTS_PER_SECOND[self.plan]

    def topic(self, name: str) -> str:
        """Return the full name of a topic: ``topic('runs')`` is ``everyrun.runs`` by default."""
        return self.topic_prefix + name


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    if name in ("extend_api_key", "extend_workspace_id"):
        return name.upper()
    return "EVERYRUN_" + name.upper()


def load(**overrides: Any) -> Settings:
    """Read the settings from the environment, and hide their secrets from then on (:mod:`everyrun.redact`).

    Raises SettingsError, which names each variable that is wrong.
    """
    try:
        settings = Settings(**overrides)
        remember(settings.secrets())
        return settings
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False, include_input=False):
            place = str(problem["loc"][0]) if problem["loc"] else "settings"
            name = place if place.isupper() else variable(place)
            lines.append(f"{name}: {problem['msg']}")
        raise SettingsError("\n".join(lines)) from None


def listen_address(value: str) -> tuple[str, int]:
    """Split an address of a ``*_listen`` setting into host and port."""
    host, _, port = value.rpartition(":")
    return host.strip("[]"), int(port)
