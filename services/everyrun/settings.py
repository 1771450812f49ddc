"""Define all settings of all services. They are read from environment variables and checked when a process starts.

The setting ``some_name`` is read from the variable ``EVERYRUN_SOME_NAME``. Two variables are exceptions,
``EXTEND_API_KEY`` and ``EXTEND_WORKSPACE_ID``: they have the names that Extend's own tools use. If a variable is wrong
or missing, :class:`SettingsError` names the variable and says what to do.

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

#: Matches an origin. Plain http is allowed only with a port, so that nobody allows it by mistake.
_ORIGIN = re.compile(
    r"(https://[^\s/?#@:]+(:\d+)?|https?://([^\s/?#@:]+|\[[0-9a-fA-F:.]+\]):\d+|https://\[[0-9a-fA-F:.]+\])/?"
)

Plan = Literal["payg", "scale", "enterprise"]

#: The requests per second that each of Extend's plans allows in each of the categories GET, WRITE and RUN
#: (docs.extend.ai/general/rate-limits).
PLAN_REQUESTS_PER_SECOND: dict[Plan, float] = {"payg": 10.0, "scale": 25.0, "enterprise": 75.0}


class SettingsError(Invalid):
    """A setting is wrong or missing. The text names its environment variable and says what to do."""


def _list_of(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _plain(value: Any) -> Any:
    """Return a text or a secret without whitespace around it. Raises ValueError if it has an invisible character.

    The error does not contain the value. Without this check, an API key with a line break would reach the HTTP client,
    which refuses it with an error that contains the key.
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
    data_dir: Path = Field(
        Path(".everyrun"), description="Folder of the embedded stack. The command line looks there for it."
    )
    kafka_bootstrap: str = Field("", description="Kafka brokers, host:port[,host:port].")
    kafka_replication: int = Field(1, ge=1, description="Number of replicas of each topic that is created.")
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Protocol for Kafka: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="With SASL: the mechanism, which is PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512."
    )
    kafka_username: str = Field("", description="With SASL: the name of the Kafka user.")
    kafka_password: SecretStr = Field(SecretStr(""), description="With SASL: the password of the Kafka user.")
    kafka_ca_file: FilePath | None = Field(
        None,
        description="With SSL: PEM file with the certificate authorities that may sign the brokers' certificates. "
        "Default: those of the operating system.",
    )
    kafka_cert_file: FilePath | None = Field(
        None, description="With SSL: PEM file with a client certificate, if the brokers require one."
    )
    kafka_key_file: FilePath | None = Field(
        None,
        description="PEM file with the private key of the client certificate, if the certificate's file lacks the key.",
    )
    kafka_key_password: SecretStr = Field(
        SecretStr(""), description="Password of the client certificate's private key, if the key has a password."
    )
    topic_prefix: str = Field("everyrun.", description="Prefix of the names of all topics and consumer groups.")
    postgres_dsn: SecretStr = Field(
        SecretStr(""),
        description="Connection string of Postgres (postgresql://...), as asyncpg and psql accept it.",
    )
    extend_base_url: str = Field("https://api.extend.ai", description="URL of Extend's API.")
    extend_api_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=AliasChoices("EXTEND_API_KEY", "EVERYRUN_EXTEND_API_KEY", "extend_api_key"),
        description="Extend's API key (sk_...).",
    )
    extend_workspace_id: str = Field(
        "",
        validation_alias=AliasChoices("EXTEND_WORKSPACE_ID", "EVERYRUN_EXTEND_WORKSPACE_ID", "extend_workspace_id"),
        description="Id of the Extend workspace, needed only if the API key belongs to an organization.",
    )

    # --- our own HTTP services: the addresses on which they listen (host:port), and the URLs at which others reach them
    submission_listen: str = Field("127.0.0.1:8801", description="Address on which the submission service listens.")
    bridge_listen: str = Field("127.0.0.1:8802", description="Address on which the webhook bridge listens.")
    query_listen: str = Field("127.0.0.1:8803", description="Address on which the query service listens.")
    processor_listen: str = Field("127.0.0.1:8804", description="Address of the processor's health checks and metrics.")
    reconciler_listen: str = Field(
        "127.0.0.1:8805", description="Address of the reconciler's health checks and metrics."
    )
    replay_listen: str = Field("127.0.0.1:8806", description="Address on which the replay service listens.")
    keep_alive: int = Field(
        75,
        ge=1,
        description="Time after which our services close idle connections. If a load balancer is in front of them, "
        "this time must be longer than the load balancer's idle timeout (usually 60). Otherwise the load balancer "
        "answers some requests with 502.",
    )
    submission_url: str = Field("", description="URL of the submission service, which the command line calls.")
    query_url: str = Field("", description="URL of the query service, which the command line calls.")
    bridge_url: str = Field(
        "", description="URL of the bridge, which `everyrun doctor` checks. Default: the bridge's port on this machine."
    )
    processor_urls: CommaList = Field(
        default_factory=list, description="URLs of the processors, which `everyrun doctor` checks, separated by commas."
    )
    reconciler_url: str = Field("", description="URL of the reconciler, which `everyrun doctor` checks.")
    replay_url: str = Field("", description="URL of the replay service, which `everyrun doctor` checks.")
    webhook_url: str = Field(
        "",
        description="URL to which Extend sends webhooks. `everyrun doctor` looks for a webhook endpoint with this URL.",
    )
    api_token: SecretStr = Field(
        SecretStr(""),
        description="A token with every scope. The services accept it in addition to the tokens made with `everyrun "
        "token create`, and the command line sends it. At least 16 characters.",
    )

    # --- Extend: rate limits and timeouts
    plan: Plan = Field("payg", description="Your plan at Extend, from which the rate limits follow.")
    requests_per_second: float | None = Field(
        None,
        gt=0,
        description="Requests per second that Extend allows in each category, if the limits differ from the plan's.",
    )
    budget_share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Share of the rate limit that each process may use while Postgres is unavailable. While Postgres "
        "is available, all processes share one budget, which is stored there.",
    )
    call_timeout: float = Field(300.0, gt=0, description="Timeout of a call to Extend.")

    # --- submission: queue and dispatch
    upload_max_bytes: int = Field(4 << 30, gt=0, description="Maximum size of the body of an upload of inputs.")
    row_max_bytes: int = Field(900_000, gt=0, description="Maximum size of one input, as JSON.")
    chunk_max_inputs: int = Field(1000, ge=1, le=1000, description="Maximum number of inputs per batch.")
    chunk_max_bytes: int = Field(
        900_000, gt=1000, description="Maximum size of a batch, as JSON. A batch must fit in one record of Kafka."
    )
    dispatch_workers: int = Field(
        4, ge=1, le=64, description="Number of chunks that one process sends at the same time."
    )
    dispatch_deadline: float = Field(
        30.0,
        gt=0,
        description="How long a process may prepare an attempt. If the call to Extend has not begun by then, the "
        "attempt is given up without a call, and the chunk is sent later.",
    )
    doubt_window: float = Field(
        900.0,
        gt=0,
        description="How long a chunk in doubt waits for evidence that Extend accepted the call. The wait begins at "
        "the timeout of the call. After the wait, the chunk can be resent.",
    )
    doubt_resends: int = Field(
        2, ge=0, description="How often a chunk in doubt is resent before it is held for a person's decision."
    )
    secrets_kept: float = Field(
        86_400.0,
        ge=0,
        description="How long the queue keeps presigned URLs and passwords after their submission has settled.",
    )
    secrets_kept_unsettled: float = Field(
        30 * 86_400.0,
        ge=0,
        description="How long the queue keeps the presigned URLs and passwords of a submission that does not settle. "
        "The time begins when the submission is accepted. After it, unsent inputs that need these URLs and passwords "
        "can no longer be sent.",
    )

    # --- bridge
    webhook_secrets: Annotated[list[SecretStr], NoDecode] = Field(
        default_factory=list, description="Signing secrets of the webhook endpoints (wss_...), separated by commas."
    )
    webhook_max_age: int = Field(300, gt=0, description="Maximum age of a webhook by its signed timestamp.")
    webhook_max_ahead: int = Field(
        60, ge=0, description="How far in the future, by our clock, the signed timestamp of a webhook may be."
    )
    webhook_max_bytes: int = Field(
        11 << 20,
        gt=0,
        le=11 << 20,
        description="Maximum size of a webhook's body. Encoded as base64, the body must fit in a record of 16 MiB.",
    )

    # --- processor
    stalled_after: float = Field(
        120.0,
        gt=0,
        description="A processor that has records to apply, but commits none for this time, exits so that it is "
        "restarted. It does not exit while Postgres or Kafka is unavailable.",
    )
    processor_index: int = Field(0, ge=0, description="Number of this processor (0, 1, …) if one machine runs several.")

    # --- query
    unmatched_after: float = Field(
        3600.0,
        ge=0,
        description="Time after which an unmatched run counts as alarming. The time begins when the run is first seen.",
    )

    # --- reconciler
    foreign_runs_kept: float = Field(
        7 * 86_400.0,
        ge=0,
        description="How long the result tables keep the content of foreign runs, which other callers in the workspace "
        "started. After that they keep only the main fields of such a run, such as its status and metadata. The log "
        "keeps everything.",
    )
    signed_url_origins: CommaList = Field(
        default_factory=list,
        description="Origins (https://host[:port]), separated by commas, to which the signed links in webhooks may "
        "lead. An origin may lead to a private network only if it is written with its port, or with an IP address as "
        "its host.",
    )
    signed_url_max_bytes: int = Field(64 << 20, gt=0, description="Maximum size of a payload behind a signed link.")
    signed_url_timeout: float = Field(30.0, gt=0, description="Timeout of fetching the payload behind a signed link.")
    poll_first_after: float = Field(60.0, ge=0, description="Time from sending a batch to its first poll.")
    poll_every: float = Field(60.0, gt=0, description="Minimum time between two polls of an open batch.")
    poll_for: float = Field(
        30 * 86_400.0,
        gt=0,
        description="A batch is polled for this long after it was sent. For the same time, its workflow is swept "
        "because of the batch.",
    )
    poll_grace: float = Field(
        10.0,
        ge=0,
        description="If a run changed less than this time ago, a poll or sweep does not fetch the run, because its "
        "webhook may still arrive.",
    )
    sweep_every: float = Field(
        300.0,
        gt=0,
        description="Time between two sweeps of a workflow. A sweep lists the runs that changed since the last sweep.",
    )
    sweep_in_doubt_every: float = Field(
        15.0,
        gt=0,
        description="Time between two sweeps of a workflow while one of its calls is in doubt. Such a sweep lists the "
        "runs that changed since a time before that call.",
    )
    sweep_margin: float = Field(
        120.0,
        ge=0,
        description="How much further back than necessary a sweep lists runs. This is a reserve, because Extend's "
        "list may lag and clocks may differ.",
    )

    # --- deadlines
    overdue_after: float = Field(
        86_400.0,
        gt=0,
        description="Time after which an open input is overdue. The time begins when the input's batch is sent. For "
        "an unsent input, it begins when the input is submitted.",
    )

    # --- replays
    replay_secret: SecretStr = Field(
        SecretStr(""),
        description="Secret (whsec_ and base64) with which `everyrun replay` signs the events that it sends over HTTP.",
    )
    replay_origins: CommaList = Field(
        default_factory=list,
        description="Origins (https://host[:port]), separated by commas, to which replays may send events. This "
        "limits only replays that were started through the replay service's API. By default they may send to none.",
    )
    archive_to: str = Field(
        "",
        description="Archive (a folder, or s3://bucket/prefix) for jobs that are started through the replay service's "
        "API.",
    )

    # --- logs
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level of the log lines that are written."
    )

    # pydantic runs validators with mode="before" from the last to the first. So _commas splits a list before _stripped
    # checks the texts in it.
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
        """Return self if all named settings are set. Otherwise raises SettingsError, which names the missing ones.

        If ``kafka_bootstrap`` is among the names and the protocol is SASL, Kafka's user and password are needed too.
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
        """Return the plain text of every secret, including the password in the dsn, so that all can be hidden."""
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
    """Read the settings from the environment, and make :mod:`everyrun.redact` hide their secrets from then on.

    ``overrides`` replace single settings. Raises SettingsError, which names each variable that is wrong.
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
    """Split the value of a ``*_listen`` setting into host and port."""
    host, _, port = value.rpartition(":")
    return host.strip("[]"), int(port)
