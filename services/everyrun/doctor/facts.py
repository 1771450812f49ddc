"""What the doctor found out, before anybody has judged it."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from everyrun.waiting import Waiting


class Answer(Struct, frozen=True):
    """What a request was answered. ``status`` is 0 where no answer came; ``message`` then says why.

    ``clock`` is how many seconds the other side's clock is ahead of ours by its Date header; None where it has none.
    """

    status: int
    code: str = ""
    message: str = ""
    body: Any = None
    clock: float | None = None


class ExtendFacts(Struct, frozen=True):
    """What Extend answered; None where it was not asked, because what comes before failed."""

    key: Answer
    workflows: dict[str, Answer] = {}
    endpoints: Answer | None = None
    subscriptions: Answer | None = None


class SelfTest(Struct, frozen=True):
    """A signed self-test that was posted to ``url``; ``secret`` is the number of the signing secret, from 1."""

    url: str
    secret: int
    answer: Answer


class Counted(Struct, frozen=True):
    """What the bridge counted since it started: webhooks by outcome, and by the place of the secret that signed."""

    outcomes: dict[str, float]
    signed: dict[int, float] = {}


class KafkaFacts(Struct, frozen=True):
    """``problem`` is why Kafka could not be asked; ``write_problem`` why the probe was not taken."""

    problem: str | None = None
    cluster_id: str = ""
    differences: list[tuple[str, str]] = []
    write_problem: str | None = None
    clock: float | None = None


class Service(Struct, frozen=True):
    """What a service answers to GET /readyz; an empty ``url`` is one of which it is not set where it runs."""

    name: str
    url: str
    ready: Answer


class Following(Struct, frozen=True):
    """Whether the tables follow the log.

    ``behind`` records were in the log and not in the tables at first; ``moved`` is whether any of them was applied
    within ``seconds``. ``problem`` is why it could not be looked at.
    """

    behind: int = 0
    moved: bool = False
    seconds: float = 0.0
    problem: str | None = None


class Swept(Struct, frozen=True):
    """A workflow with open batches: seconds since its last complete sweep, or since its oldest open batch was sent if
    there was none yet."""

    workflow_id: str
    batches: int
    seconds: float


class Late(Struct, frozen=True):
    """Inputs of ``submissions`` submissions that were not sent and have waited longer than they should.

    ``passed`` is whether the time until which they wait is over, so that somebody should have acted.
    """

    waiting: Waiting
    submissions: int
    passed: bool


class PostgresFacts(Struct, frozen=True):
    """``problem`` is why Postgres could not be asked; ``shared`` is whether it is behind a pooler without sessions.

    ``limits`` are those that role, database or server set: name, value, and what set it. Migrations are by schema:
    those applied, None for no schema.
    """

    problem: str | None = None
    shared: bool = False
    limits: list[tuple[str, str, str]] = []
    version: int = 0
    read_only: str | None = None
    write_problem: str | None = None
    migrations: dict[str, list[str] | None] = {}
    cluster_ids: list[str] = []
    #: Of submissions that lost inputs to a restored backup of the queue: id, Idempotency-Key, how many.
    lost: list[tuple[str, str, int]] = []
    clock: float | None = None
    swept: list[Swept] = []
    late: list[Late] = []
