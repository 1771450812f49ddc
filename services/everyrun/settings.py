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

from pydantic import AliasChoices, Field, FilePath, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from everyrun.errors import Invalid
from everyrun.objects import MAX_LIFETIME
from everyrun.redact import passwords_of, remember

#: Matches an origin. Plain http is allowed only with a port, so that nobody allows it by mistake.
_ORIGIN = re.compile(
    r"(https://[^\s/?#@:]+(:\d+)?|https?://([^\s/?#@:]+|\[[0-9a-fA-F:.]+\]):\d+|https://\[[0-9a-fA-F:.]+\])/?"
)

Plan = Literal["payg", "scale", "enterprise"]

#: The requests per second that each of Extend's plans allows in each of the categories GET, WRITE and RUN
#: (docs.extend.ai/general/rate-limits).
PLAN_REQUESTS_PER_SECOND: dict[Plan, float] = {"payg": 10.0, "scale": 25.0, "enterprise": 75.0}

#: The files per minute that Extend processes at least, on each of its plans (docs.extend.ai/general/rate-limits).
PLAN_FILES_PER_MINUTE: dict[Plan, float] = {"payg": 80.0, "scale": 120.0, "enterprise": 300.0}


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
        Path(".everyrun"),
        description="Folder in which `everyrun up` keeps its data, and by which other commands find it.",
    )
    kafka_bootstrap: str = Field("", description="Addresses of the Kafka brokers: host:port, separated by commas.")
    kafka_replication: int = Field(1, ge=1, description="Replication factor of the topics that Everyrun creates.")
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
        description="PEM file with the private key of the client certificate, if it is not in the certificate's file.",
    )
    kafka_key_password: SecretStr = Field(
        SecretStr(""), description="Password of the client certificate's private key, if the key has a password."
    )
    topic_prefix: str = Field("everyrun.", description="Prefix of the names of all topics and consumer groups.")
    postgres_dsn: SecretStr = Field(
        SecretStr(""),
        description="Connection string for Postgres (postgresql://...), in a form that asyncpg and psql accept.",
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
    submission_listen: str = Field(
        "127.0.0.1:8801", description="Address (host:port) on which the submission service listens."
    )
    bridge_listen: str = Field("127.0.0.1:8802", description="Address (host:port) on which the webhook bridge listens.")
    query_listen: str = Field("127.0.0.1:8803", description="Address (host:port) on which the query service listens.")
    processor_listen: str = Field(
        "127.0.0.1:8804", description="Address (host:port) at which the processor serves health checks and metrics."
    )
    reconciler_listen: str = Field(
        "127.0.0.1:8805", description="Address (host:port) at which the reconciler serves health checks and metrics."
    )
    replay_listen: str = Field("127.0.0.1:8806", description="Address (host:port) on which the replay service listens.")
    notifier_listen: str = Field("127.0.0.1:8807", description="Address (host:port) on which the notifier listens.")
    dropin_listen: str = Field(
        "",
        description="Address (host:port) on which the submission service serves Extend's own paths, for programs that "
        "use Extend's SDK. Default: none.",
    )
    keep_alive: int = Field(
        75,
        ge=1,
        description="Time after which Everyrun's services close an idle HTTP connection. Behind a load balancer, set "
        "a longer time than the load balancer's idle timeout, which is usually 60 seconds. Otherwise the load balancer "
        "answers some requests with 502.",
    )
    submission_url: str = Field("", description="URL at which the command line calls the submission service.")
    query_url: str = Field("", description="URL at which the command line calls the query service.")
    bridge_url: str = Field(
        "", description="URL at which `everyrun doctor` checks the bridge. Default: the bridge's port on this machine."
    )
    processor_urls: CommaList = Field(
        default_factory=list, description="URLs at which `everyrun doctor` checks the processors, separated by commas."
    )
    reconciler_url: str = Field("", description="URL at which `everyrun doctor` checks the reconciler.")
    replay_url: str = Field("", description="URL at which `everyrun doctor` checks the replay service.")
    notifier_url: str = Field(
        "", description="URL at which `everyrun notify` calls the notifier, and `everyrun doctor` checks it."
    )
    webhook_url: str = Field(
        "",
        description="URL to which Extend sends webhooks. `everyrun doctor` checks that Extend has a webhook endpoint "
        "with this URL.",
    )
    api_token: SecretStr = Field(
        SecretStr(""),
        description="A token with every scope. The command line sends it. The services accept it in addition to the "
        "tokens made with `everyrun token create`. At least 16 characters.",
    )

    # --- Extend: rate limits and timeouts
    plan: Plan = Field("payg", description="Your plan at Extend. It determines the rate limits.")
    files_per_minute: float | None = Field(
        None,
        gt=0,
        description="Files that Extend processes per minute. Estimates of the time left use it until results show the "
        "actual rate. A file counts once for each step of the workflow that processes it. Default: the rate of the "
        "plan (80, 120 or 300).",
    )
    requests_per_second: float | None = Field(
        None,
        gt=0,
        description="Requests per second that Extend allows in each category (GET, WRITE, RUN). Default: the limit "
        "of the plan.",
    )
    budget_share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Share of the rate limit that each process may use while Postgres is unavailable. Normally, all "
        "processes share the whole limit and coordinate through Postgres.",
    )
    call_timeout: float = Field(300.0, gt=0, description="Timeout of a call to Extend.")

    # --- submission: queue and dispatch
    upload_max_bytes: int = Field(4 << 30, gt=0, description="Maximum size of the request body that uploads inputs.")
    row_max_bytes: int = Field(900_000, gt=0, description="Maximum size of one input, written as JSON.")
    chunk_max_inputs: int = Field(1000, ge=1, le=1000, description="Maximum number of inputs per batch.")
    chunk_max_bytes: int = Field(
        900_000, gt=1000, description="Maximum size of a batch, written as JSON. A batch must fit in one Kafka record."
    )
    dispatch_workers: int = Field(
        4, ge=1, le=64, description="Maximum number of chunks that one process sends at the same time."
    )
    dispatch_deadline: float = Field(
        30.0,
        gt=0,
        description="Maximum time from claiming a chunk to calling Extend. If more time has passed, the process does "
        "not make the call, and the chunk is sent later.",
    )
    max_open_inputs: int = Field(
        50_000,
        ge=0,
        description="The sending window: how many inputs of a workflow may be open at Extend at the same time. Further "
        "inputs wait in the queue until results arrive. 0 sends everything at once. See also "
        "`everyrun submit --max-open`.",
    )
    doubt_window: float = Field(
        900.0,
        gt=0,
        description="If a call to Extend ends without a clear answer: how long Everyrun waits for a run which proves "
        "that Extend accepted the call. After this time and two complete sweeps without such a run, it sends the chunk "
        "again.",
    )
    doubt_resends: int = Field(
        2,
        ge=0,
        description="How many times Everyrun resends a chunk whose calls got no clear answer. After that, a person "
        "must decide.",
    )
    object_link_lifetime: float = Field(
        86_400.0,
        ge=60,
        le=MAX_LIFETIME,
        description="How long the link to an object in a bucket (s3://, gs://, az://) is valid. Everyrun presigns the "
        "link when it sends the object's batch. Extend must fetch the object within this time, so set a longer time if "
        "runs wait for hours at Extend. At most seven days, which is the providers' maximum.",
    )
    secrets_kept: float = Field(
        86_400.0,
        ge=0,
        description="How long the queue keeps the presigned URLs and passwords of a submission after all its inputs "
        "have settled.",
    )
    secrets_kept_unsettled: float = Field(
        30 * 86_400.0,
        ge=0,
        description="How long after the upload the queue keeps the presigned URLs and passwords of a submission that "
        "has not settled. After that, unsent inputs that need them must be submitted again.",
    )

    dropin_wait: float = Field(
        3.0,
        ge=0,
        description="How long an answer to a batch that Extend's SDK sends to Everyrun waits for Extend to accept or "
        "refuse the batch. After that, the caller gets a batchId of Everyrun's.",
    )

    # --- bridge
    webhook_secrets: Annotated[list[SecretStr], NoDecode] = Field(
        default_factory=list, description="Signing secrets of the webhook endpoints (wss_...), separated by commas."
    )
    webhook_max_age: int = Field(
        300, gt=0, description="The bridge refuses a webhook if its signed timestamp is older than this."
    )
    webhook_max_ahead: int = Field(
        60, ge=0, description="The bridge refuses a webhook if its signed timestamp is further in the future than this."
    )
    webhook_max_bytes: int = Field(
        11 << 20,
        gt=0,
        le=11 << 20,
        description="Maximum size of a webhook's body. Encoded as base64, it must fit in a Kafka record of 16 MiB.",
    )

    # --- processor
    stalled_after: float = Field(
        120.0,
        gt=0,
        description="A processor exits, so that it is restarted, if it has records to apply but has committed none for "
        "this time. It does not exit while Postgres or Kafka is unavailable.",
    )
    processor_index: int = Field(
        0, ge=0, description="Number of this processor, if one machine runs several: 0, 1, and so on."
    )

    # --- query
    unmatched_after: float = Field(
        3600.0,
        ge=0,
        description="A run that matches no input is reported as a problem if it is still unmatched this long after "
        "Everyrun first saw it.",
    )

    # --- reconciler
    foreign_runs_kept: float = Field(
        7 * 86_400.0,
        ge=0,
        description="How long the result tables keep the complete content of a foreign run: a run that another caller "
        "in the workspace started. After that, the tables keep only its main fields, such as status and metadata. The "
        "log keeps everything.",
    )
    signed_url_origins: CommaList = Field(
        default_factory=list,
        description="Origins (https://host[:port]), separated by commas. If a webhook contains a signed link to its "
        "payload, Everyrun fetches the payload only from these origins. An origin with a host name and no port may "
        "lead only to public addresses. To allow a private address, add the port (https://minio.internal:443) or write "
        "the IP address.",
    )
    signed_url_max_bytes: int = Field(
        64 << 20, gt=0, description="Maximum size of a payload that is fetched from a signed link."
    )
    signed_url_timeout: float = Field(30.0, gt=0, description="Timeout for fetching a payload from a signed link.")
    poll_first_after: float = Field(
        60.0,
        ge=0,
        description="Time from sending a batch until the reconciler first asks Extend for the batch's runs (a poll).",
    )
    poll_every: float = Field(60.0, gt=0, description="Minimum time between two polls of a batch that is not settled.")
    poll_for: float = Field(
        30 * 86_400.0,
        gt=0,
        description="How long the reconciler watches a batch after it was sent. During this time, it polls the batch "
        "until it is settled, and sweeps the batch's workflow for runs that changed.",
    )
    poll_grace: float = Field(
        10.0,
        ge=0,
        description="A poll or sweep does not fetch a run that changed less than this time ago, because the webhook "
        "about the change may still arrive.",
    )
    sweep_every: float = Field(
        300.0,
        gt=0,
        description="Time between two sweeps of a workflow. In a sweep, the reconciler lists the workflow's runs that "
        "changed since the last sweep.",
    )
    sweep_in_doubt_every: float = Field(
        15.0,
        gt=0,
        description="Time between two sweeps of a workflow while one of its calls is in doubt. Such a sweep lists all "
        "runs that changed since the call began.",
    )
    sweep_margin: float = Field(
        120.0,
        ge=0,
        description="Safety margin for sweeps. A sweep goes back to the start of the last complete sweep, and further "
        "by this time, because Extend's list may lag and the clocks may differ.",
    )

    # --- deadlines
    overdue_after: float = Field(
        86_400.0,
        gt=0,
        description="An input is reported as overdue if it is not settled this long after Extend can be expected to "
        "have processed it. That is when its batch was sent, plus the time that Extend needs, at the files per minute "
        "of the plan, for the inputs that were open then. An unsent input is overdue if it has waited this long since "
        "its submission.",
    )

    # --- replays
    replay_secret: SecretStr = Field(
        SecretStr(""),
        description="Secret (whsec_ and base64 text) with which `everyrun replay` signs the events that it sends over "
        "HTTP.",
    )
    replay_origins: CommaList = Field(
        default_factory=list,
        description="Origins (https://host[:port]), separated by commas, to which the replay service may send events "
        "over HTTP. Default: none. The command `everyrun replay` may send to any origin.",
    )
    archive_to: str = Field(
        "",
        description="Location of the archive that the replay service writes and verifies: a folder, or "
        "s3://bucket/prefix.",
    )

    # --- notifier
    notify_http: bool = Field(
        False,
        description="If true, a receiver's URL may begin with http:// for any host. Otherwise, it may do so only for "
        "this machine (localhost, 127.0.0.1).",
    )
    notify_private: bool = Field(
        False,
        description="If true, receivers may be at addresses that are not public: this machine, or a private network. "
        "Otherwise, the notifier does not connect to such addresses.",
    )
    notify_timeout: float = Field(
        30.0, gt=0, description="Time within which a receiver must answer. After that, the request has failed."
    )
    notify_at_once: int = Field(
        8, ge=1, le=256, description="Maximum number of requests that one process sends to one receiver at a time."
    )
    notify_retry_first: float = Field(
        5.0, gt=0, description="Time until a failed delivery is first retried. It doubles with each further failure."
    )
    notify_retry_most: float = Field(
        3600.0,
        gt=0,
        description="Maximum time between two tries of a delivery, if the receiver asks for no longer one.",
    )
    notify_retry_for: float = Field(
        3 * 86_400.0, gt=0, description="How long a delivery is retried. After that, it is given up."
    )
    notify_kept: float = Field(
        7 * 86_400.0,
        gt=0,
        description="How long delivered and given up deliveries are kept, with the body, so that they can be listed "
        "and resent.",
    )

    # --- logs
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Minimum level of the log lines that are written."
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
        "extend_base_url",
        "submission_url",
        "query_url",
        "bridge_url",
        "webhook_url",
        "reconciler_url",
        "replay_url",
        "notifier_url",
    )
    @classmethod
    def _no_trailing_slash(cls, value: str) -> str:
        return value.rstrip("/")

    @field_validator(
        "submission_listen",
        "bridge_listen",
        "query_listen",
        "processor_listen",
        "reconciler_listen",
        "replay_listen",
        "notifier_listen",
        "dropin_listen",
    )
    @classmethod
    def _host_and_port(cls, value: str, info: ValidationInfo) -> str:
        if not value and info.field_name == "dropin_listen":
            return value
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

    def file_rate(self) -> float:
        """Return the files per minute that Extend is expected to process."""
        return self.files_per_minute or PLAN_FILES_PER_MINUTE[self.plan]

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
