"""Define the facts that the doctor gathers and then judges."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from everyrun.waiting import Waiting


class Answer(Struct, frozen=True):
    """The response to a request. If there was none, ``status`` is 0 and ``message`` says why.

    ``clock`` is how many seconds the server's clock is ahead of this machine's, computed from the Date header, or None
    if the response has no such header.
    """

    status: int
    code: str = ""
    message: str = ""
    body: Any = None
    clock: float | None = None


class ExtendFacts(Struct, frozen=True):
    """Extend's responses. If a request was not sent because an earlier one failed, its response is None."""

    key: Answer
    workflows: dict[str, Answer] = {}
    endpoints: Answer | None = None
    subscriptions: Answer | None = None


class SelfTest(Struct, frozen=True):
    """A self-test that was posted to ``url``, signed with secret number ``secret`` (from 1)."""

    url: str
    secret: int
    answer: Answer


class Counted(Struct, frozen=True):
    """The bridge's counters since it started: webhooks by outcome, and by the number of the secret that signed them."""

    outcomes: dict[str, float]
    signed: dict[int, float] = {}


class KafkaFacts(Struct, frozen=True):
    """Facts about Kafka. ``problem`` says why Kafka does not answer, ``write_problem`` why it refused the test record.

    ``differences`` lists where the topics differ from their declaration: what is wrong, and the remedy. ``clock`` is
    how many seconds the broker's clock is ahead of this machine's.
    """

    problem: str | None = None
    cluster_id: str = ""
    differences: list[tuple[str, str]] = []
    write_problem: str | None = None
    clock: float | None = None


class Service(Struct, frozen=True):
    """A service's response to GET /readyz. ``url`` is empty if the setting with the service's URL is missing."""

    name: str
    url: str
    ready: Answer


class Following(Struct, frozen=True):
    """Describes how the result tables follow the log.

    ``behind`` is how many records were in the log and not in the tables when the measurement began. ``moved`` is True
    if one of them was applied during the measurement, which took ``seconds``. ``problem`` says why nothing could be
    measured.
    """

    behind: int = 0
    moved: bool = False
    seconds: float = 0.0
    problem: str | None = None


class Swept(Struct, frozen=True):
    """A workflow with open batches, and the seconds since its last complete sweep.

    For a workflow that was never swept, these are the seconds since its oldest open batch was sent.
    """

    workflow_id: str
    batches: int
    seconds: float


class Late(Struct, frozen=True):
    """Inputs that were not sent, wait for the same thing, and have waited too long.

    ``submissions`` is the number of submissions that have such inputs. ``passed`` is True if the wait of these inputs
    should have ended by now.
    """

    waiting: Waiting
    submissions: int
    passed: bool


class ReceiverFacts(Struct, frozen=True):
    """A receiver of notifications, and for how many seconds all requests to it have failed; 0 if the last succeeded."""

    receiver_id: str
    seconds: float
    last_error: str | None


class PostgresFacts(Struct, frozen=True):
    """Facts about Postgres. ``problem`` says why Postgres does not answer.

    ``shared`` is True if the connection leads through a pooler that gives a session to several clients in turn.
    ``limits`` are the timeouts that a role, the database or the server sets (name, value and source in pg_settings).
    ``migrations`` lists the applied migrations of each schema, with None for a schema that is missing. ``cluster_ids``
    are the ids of the Kafka clusters from which the result tables were made.
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
    receivers: list[ReceiverFacts] = []
