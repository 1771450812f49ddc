"""Define the facts that the doctor gathers and then judges."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from everyrun.waiting import Waiting


class Answer(Struct, frozen=True):
    """The response to a request. If there was none, ``status`` is 0 and ``message`` says why.

    ``clock`` is how many seconds the server's clock is ahead of ours, by its Date header; None if it has none.
    """

    status: int
    code: str = ""
    message: str = ""
    body: Any = None
    clock: float | None = None


class ExtendFacts(Struct, frozen=True):
    """Extend's responses. None if a request was not sent, because an earlier one failed."""

    key: Answer
    workflows: dict[str, Answer] = {}
    endpoints: Answer | None = None
    subscriptions: Answer | None = None


class SelfTest(Struct, frozen=True):
    """A signed self-test that was posted to ``url``. ``secret`` is the number of the signing secret, from 1."""

    url: str
    secret: int
    answer: Answer


class Counted(Struct, frozen=True):
    """The bridge's counters since it started: webhooks by outcome, and by the number of the secret that signed."""

    outcomes: dict[str, float]
    signed: dict[int, float] = {}


class KafkaFacts(Struct, frozen=True):
    """Facts about Kafka. ``problem`` says why it does not answer, ``write_problem`` why it did not accept the probe."""

    problem: str | None = None
    cluster_id: str = ""
    differences: list[tuple[str, str]] = []
    write_problem: str | None = None
    clock: float | None = None


class Service(Struct, frozen=True):
    """A service's response to GET /readyz. ``url`` is empty if the setting with its URL is missing."""

    name: str
    url: str
    ready: Answer


class Following(Struct, frozen=True):
    """How the tables follow the log.

    At first, ``behind`` records were in the log and not in the tables. ``moved`` is True if any of them was applied
    within ``seconds``. ``problem`` says why this could not be measured.
    """

    behind: int = 0
    moved: bool = False
    seconds: float = 0.0
    problem: str | None = None


class Swept(Struct, frozen=True):
    """A workflow with open batches, and the seconds since its last complete sweep.

    If it was never swept, the seconds are since its oldest open batch was sent.
    """

    workflow_id: str
    batches: int
    seconds: float


class Late(Struct, frozen=True):
    """Inputs of a number of submissions that were not sent and have waited too long.

    ``passed`` is True if their wait should have ended by now.
    """

    waiting: Waiting
    submissions: int
    passed: bool


class PostgresFacts(Struct, frozen=True):
    """Facts about Postgres. ``problem`` says why it does not answer.

    ``shared`` is True if it is behind a pooler without sessions. ``limits`` are set by role, database or server: name,
    value and source. ``migrations`` are the applied ones by schema, None if the schema is missing.
    """

    problem: str | None = None
    shared: bool = False
    limits: list[tuple[str, str, str]] = []
    version: int = 0
    read_only: str | None = None
    write_problem: str | None = None
    migrations: dict[str, list[str] | None] = {}
    cluster_ids: list[str] = []
    #: Submissions that lost inputs when a backup of the queue was restored: id, Idempotency-Key, number of inputs.
    lost: list[tuple[str, str, int]] = []
    clock: float | None = None
    swept: list[Swept] = []
    late: list[Late] = []
