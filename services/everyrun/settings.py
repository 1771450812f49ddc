"""Every setting of every service, in one place: an environment variable each, checked at start.

A name here in lower case is the environment variable ``EVERYRUN_`` + the name in upper case, but for Extend's own
``EXTEND_API_KEY`` and ``EXTEND_WORKSPACE_ID``. ``load()`` fails with :class:`SettingsError`, which names the variable
that is wrong or missing and says what to do.
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

#: Without TLS only where the port is written too: as a decision, not as a slip.
_ORIGIN = re.compile(
    r"(https://[^\s/?#@:]+(:\d+)?|https?://([^\s/?#@:]+|\[[0-9a-fA-F:.]+\]):\d+|https://\[[0-9a-fA-F:.]+\])/?"
)

Plan = Literal["payg", "scale", "enterprise"]

#: Requests a second in each of GET, WRITE and RUN, by plan (docs.extend.ai/general/rate-limits).
PLAN_REQUESTS_PER_SECOND: dict[Plan, float] = {"payg": 10.0, "scale": 25.0, "enterprise": 75.0}


class SettingsError(Invalid):
    """A setting is wrong or missing; the text names its environment variable and the remedy."""


def _list_of(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _plain(value: Any) -> Any:
    """Strip the whitespace around a text, of a secret too. Raises ValueError, without the value, for what is invisible.

    A key that was read with its line break would be refused by the HTTP client, whose message holds the key.
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
            raise ValueError(f"has an invisible character ({what}) at place {place} of {len(text)}; take it out")
    return text


CommaList = Annotated[list[str], NoDecode]


class Settings(BaseSettings):
    """The settings of one installation. Times are in seconds, sizes in bytes, unless a name says otherwise."""

    model_config = SettingsConfigDict(env_prefix="EVERYRUN_", extra="ignore", hide_input_in_errors=True)

    # --- where things are
    data_dir: Path = Field(Path(".everyrun"), description="Folder of an embedded stack; the CLI finds it by this.")
    kafka_bootstrap: str = Field("", description="Kafka brokers, host:port[,host:port].")
    kafka_replication: int = Field(1, ge=1, description="Replicas of each topic when topics are created.")
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="How Kafka is spoken to: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="With SASL: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512."
    )
    kafka_username: str = Field("", description="With SASL: the user.")
    kafka_password: SecretStr = Field(SecretStr(""), description="With SASL: the user's password.")
    kafka_ca_file: FilePath | None = Field(
        None, description="With SSL: PEM of the authorities that signed the brokers' certificates; else the system's."
    )
    kafka_cert_file: FilePath | None = Field(None, description="With SSL: PEM of our own certificate, if one is asked.")
    kafka_key_file: FilePath | None = Field(None, description="PEM of its key; else it is in the certificate's file.")
    kafka_key_password: SecretStr = Field(SecretStr(""), description="The password of the key, where it has one.")
    topic_prefix: str = Field("everyrun.", description="Put before every topic name and consumer group.")
    postgres_dsn: SecretStr = Field(SecretStr(""), description="Postgres, as asyncpg and psql take it.")
    extend_base_url: str = Field("https://api.extend.ai", description="Extend's API, no trailing slash.")
    extend_api_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=AliasChoices("EXTEND_API_KEY", "EVERYRUN_EXTEND_API_KEY", "extend_api_key"),
        description="Extend's API key (sk_...).",
    )
    extend_workspace_id: str = Field(
        "",
        validation_alias=AliasChoices("EXTEND_WORKSPACE_ID", "EVERYRUN_EXTEND_WORKSPACE_ID", "extend_workspace_id"),
        description="Workspace, needed with an organization's key.",
    )

    # --- our own HTTP services: host:port each
    submission_listen: str = Field("127.0.0.1:8801", description="Where the submission service listens.")
    bridge_listen: str = Field("127.0.0.1:8802", description="Where the webhook bridge listens.")
    query_listen: str = Field("127.0.0.1:8803", description="Where the query service listens.")
    processor_listen: str = Field("127.0.0.1:8804", description="Where the processor's health listens.")
    reconciler_listen: str = Field("127.0.0.1:8805", description="Where the reconciler's health listens.")
    replay_listen: str = Field("127.0.0.1:8806", description="Where the replay service listens.")
    keep_alive: int = Field(
        75,
        ge=1,
        description="Idle connections to our services are closed after this long. Must be longer than a load "
        "balancer before them keeps its own (60 by default, mostly), or it answers some requests with 502.",
    )
    submission_url: str = Field("", description="Where the command line finds the submission service.")
    query_url: str = Field("", description="Where the command line finds the query service.")
    bridge_url: str = Field("", description="Where the doctor finds the bridge, if not where it listens.")
    processor_urls: CommaList = Field(
        default_factory=list, description="Where the doctor finds the processors, comma separated."
    )
    reconciler_url: str = Field("", description="Where the doctor finds the reconciler.")
    replay_url: str = Field("", description="Where the doctor finds the replay service.")
    webhook_url: str = Field("", description="The bridge's address as Extend knows it, for the doctor to compare.")
    api_token: SecretStr = Field(
        SecretStr(""),
        description="A token with every scope, beside those of `everyrun token`; also what the command line carries. "
        "At least 16 characters.",
    )

    # --- Extend: how fast, how long
    plan: Plan = Field("payg", description="Extend's plan: sets the requests a second of each category.")
    requests_per_second: float | None = Field(None, gt=0, description="Overrides the plan's requests a second.")
    budget_share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Share of the plan's rate that each process keeps to while the shared budget in Postgres is away.",
    )
    call_timeout: float = Field(300.0, gt=0, description="Longest a call to Extend may take.")

    # --- submission: queue and dispatch
    upload_max_bytes: int = Field(4 << 30, gt=0, description="Largest upload of inputs taken in.")
    row_max_bytes: int = Field(900_000, gt=0, description="Largest single input, as JSON.")
    chunk_max_inputs: int = Field(1000, ge=1, le=1000, description="Inputs a batch; Extend takes 1,000.")
    chunk_max_bytes: int = Field(900_000, gt=1000, description="JSON bytes a batch, so that one event holds it.")
    dispatch_workers: int = Field(4, ge=1, le=64, description="Chunks sent at the same time by one process.")
    dispatch_deadline: float = Field(30.0, gt=0, description="An attempt not begun after this is given up unsent.")
    doubt_window: float = Field(
        900.0, gt=0, description="Evidence for a call of unknown outcome is awaited this long after its time-out."
    )
    doubt_resends: int = Field(2, ge=0, description="Times a chunk in doubt is sent again before it is held.")
    secrets_kept: float = Field(86_400.0, ge=0, description="Presigned URLs are kept this long after settling.")
    secrets_kept_unsettled: float = Field(
        30 * 86_400.0,
        ge=0,
        description="Presigned URLs of a submission that does not settle are kept this long after it was handed in; "
        "what is not sent by then cannot be sent any more.",
    )

    # --- bridge
    webhook_secrets: Annotated[list[SecretStr], NoDecode] = Field(
        default_factory=list, description="Signing secrets of the webhook endpoint (wss_...), comma separated."
    )
    webhook_max_age: int = Field(300, gt=0, description="Oldest webhook taken, by its signed timestamp.")
    webhook_max_ahead: int = Field(60, ge=0, description="A webhook's timestamp may be this far ahead of our clock.")
    webhook_max_bytes: int = Field(
        11 << 20, gt=0, le=11 << 20, description="Largest webhook body taken; as base64 it must fit a record of 16 MiB."
    )

    # --- processor
    stalled_after: float = Field(
        120.0,
        gt=0,
        description="A processor with records waiting and no commit for so long ends itself to be started anew; "
        "not while Postgres or Kafka is away.",
    )
    processor_index: int = Field(0, ge=0, description="Which of several processors on one machine this is.")

    # --- query
    unmatched_after: float = Field(
        3600.0, ge=0, description="A run that no input is known for is alarming this long after it was first seen."
    )

    # --- reconciler
    foreign_runs_kept: float = Field(
        7 * 86_400.0,
        ge=0,
        description="Other people's runs of the workspace keep their content in the tables for this long, then only "
        "their head. The log keeps all of it.",
    )
    signed_url_origins: CommaList = Field(
        default_factory=list,
        description="Origins (https://host[:port]) that signed payload links may name. One written with its port, or "
        "with an address for its host, may lead into a private network, others not.",
    )
    signed_url_max_bytes: int = Field(64 << 20, gt=0, description="Largest payload fetched from a signed link.")
    signed_url_timeout: float = Field(30.0, gt=0, description="Longest fetch of a signed link.")
    poll_first_after: float = Field(60.0, ge=0, description="A batch is first polled this long after it was sent.")
    poll_every: float = Field(60.0, gt=0, description="An open batch is polled this often at most.")
    poll_for: float = Field(
        30 * 86_400.0, gt=0, description="A batch is polled, and its workflow swept, this long after it was sent."
    )
    poll_grace: float = Field(
        10.0, ge=0, description="A run that changed less than this ago is left to its webhook until the next poll."
    )
    sweep_every: float = Field(
        300.0, gt=0, description="Each workflow's runs that changed since the last sweep are listed this often."
    )
    sweep_in_doubt_every: float = Field(
        15.0, gt=0, description="The same while the outcome of a call is unknown, back to before that call."
    )
    sweep_margin: float = Field(
        120.0, ge=0, description="A sweep looks this much further back: Extend's list may lag, and clocks differ."
    )

    # --- deadlines
    overdue_after: float = Field(
        86_400.0,
        gt=0,
        description="An input still open this long after its batch was sent, or it was handed in, is overdue.",
    )

    # --- replays
    replay_secret: SecretStr = Field(
        SecretStr(""), description="Signs what `everyrun replay` sends to an HTTP address (whsec_..., base64)."
    )
    replay_origins: CommaList = Field(
        default_factory=list,
        description="Origins (https://host[:port]) that replays asked for over HTTP may send to; none by default.",
    )
    archive_to: str = Field(
        "", description="The archive that jobs asked for over HTTP write and verify: a folder, or s3://bucket/prefix."
    )

    # --- logs
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level written.")

    # Validators of this kind run from the last to the first: a list is split before its texts are looked at.
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
                    what = "a blank" if character.isspace() else "a character that is not ASCII"
                    raise ValueError(f"has {what} at place {place} of {len(text)}; copy it again")
        return value

    @field_validator("signed_url_origins", "replay_origins")
    @classmethod
    def _origins(cls, value: list[str]) -> list[str]:
        for written in value:
            if not _ORIGIN.fullmatch(written):
                raise ValueError(f"{written!r} is no origin: write https://host, https://host:port or http://host:port")
        return value

    @field_validator("api_token")
    @classmethod
    def _not_to_be_guessed(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value()) < 16:
            raise ValueError("must have at least 16 characters; make one with: openssl rand -hex 32")
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
        """Return self if each named setting is given; else raise SettingsError naming those that are not.

        Who needs Kafka needs a user and a password too where SASL is spoken.
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
        """Return the plain text of every secret among the settings, of the dsn its password too: for hiding them."""
        given = [getattr(self, name) for name in type(self).model_fields]
        kept = [one for value in given for one in (value if isinstance(value, list) else [value])]
        plain = [one.get_secret_value() for one in kept if isinstance(one, SecretStr)]
        return [text for text in (*plain, *passwords_of(self.postgres_dsn.get_secret_value())) if text]

    def rate(self) -> float:
        """Requests a second that Extend allows in each of its categories."""
        return self.requests_per_second or PLAN_REQUESTS_PER_SECOND[self.plan]

    def topic(self, name: str) -> str:
        """The full name of a topic: ``topic('runs')`` is ``everyrun.runs`` by default."""
        return self.topic_prefix + name


def variable(name: str) -> str:
    """The environment variable that a setting is read from."""
    if name in ("extend_api_key", "extend_workspace_id"):
        return name.upper()
    return "EVERYRUN_" + name.upper()


def load(**overrides: Any) -> Settings:
    """Read the settings from the environment; their secrets are hidden from then on (:mod:`everyrun.redact`).

    Raises SettingsError naming each variable that is wrong.
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
    """Split ``host:port``, as the ``*_listen`` settings hold it."""
    host, _, port = value.rpartition(":")
    return host.strip("[]"), int(port)
