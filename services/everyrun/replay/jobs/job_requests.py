"""What may be asked of the replay service as a job. Pure: what cannot be meant is refused when it is asked."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, field_validator, model_validator

from everyrun.replay import log_position
from everyrun.replay.export import replay_events
from everyrun.replay.export.selection import INPUTS, Selection, known_topics, parse_offsets
from everyrun.replay.rebuild.rebuild import DEFAULT_SCHEMA


class _Job(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _moment(text: str | None) -> str | None:
    """Return the moment as it is when it is asked for: a job may have to wait."""
    found = None if text is None else log_position.parse(text)
    return found.isoformat() if isinstance(found, datetime) else text


def _with_zone(moment: datetime | None) -> datetime | None:
    if moment is not None and moment.tzinfo is None:
        raise ValueError(f"does not say in which time zone; write {moment.isoformat()}Z for UTC")
    return moment


class Rebuild(_Job):
    """Every table anew in a schema of its own; put live afterwards with ``swap``."""

    kind: Literal["rebuild"]
    schema_: Annotated[str, Field(alias="schema", pattern="^[a-z_][a-z0-9_]{0,50}$")] = DEFAULT_SCHEMA
    until: Annotated[str | None, Field(description="A time, or batches:0=12,runs:0=400,...; not with swap.")] = None
    fresh: bool = False
    swap: bool = False
    processes: Annotated[int, Field(ge=1, le=16, description="Processes that share the partitions.")] = 1

    _until = field_validator("until")(_moment)

    @model_validator(mode="after")
    def _swap_is_of_now(self) -> Rebuild:
        if self.swap and self.until is not None:
            raise ValueError("swap puts the tables live as they are now: leave out until, or swap")
        return self


class Audit(_Job):
    """The live tables compared with the log; everything where nothing is selected."""

    kind: Literal["audit"]
    batch: str | None = None
    submission: str | None = None
    since: Annotated[datetime | None, AfterValidator(_with_zone)] = None
    until: Annotated[datetime | None, AfterValidator(_with_zone)] = None


class AsOf(_Job):
    """A report or a row as the log had it at a moment."""

    kind: Literal["as-of"]
    moment: Annotated[str, Field(description="A time, or batches:0=12,runs:0=400,...")]
    what: Literal["report", "row"]
    id: Annotated[str, Field(description="A submission; for a row an input id.")]

    _of = field_validator("moment")(_moment)


class Replay(_Job):
    """Chosen events again, marked as replays, to a topic or an address; one like it that was ended is gone on with."""

    kind: Literal["replay"]
    to: Annotated[str, Field(description="A topic's full name, or a URL within EVERYRUN_REPLAY_ORIGINS.")]
    batch: str | None = None
    submission: str | None = None
    types: list[str] = []
    topics: list[str] = []
    since: Annotated[datetime | None, AfterValidator(_with_zone)] = None
    until: Annotated[datetime | None, AfterValidator(_with_zone)] = None
    from_offsets: Annotated[str | None, Field(description="runs:0=400,runs:1=20..90")] = None
    rate: Annotated[float | None, Field(gt=0, description="Events a second at most.")] = None

    @field_validator("to")
    @classmethod
    def _no_file(cls, value: str) -> str:
        if replay_events.kind_of(value) == "file":
            raise ValueError("a file is written by the command line: everyrun replay")
        return value

    @model_validator(mode="after")
    def _of_what_there_is(self) -> Replay:
        self.selection()
        return self

    def selection(self) -> Selection:
        """What is chosen. Raises SelectionError."""
        return Selection(
            topics=known_topics(self.topics) if self.topics else INPUTS,
            batch=self.batch,
            submission=self.submission,
            types=tuple(sorted(self.types)),
            since=self.since,
            until=self.until,
            offsets=parse_offsets(self.from_offsets) if self.from_offsets else {},
        )


class Archive(_Job):
    """The archive of EVERYRUN_ARCHIVE_TO brought up to where the log ends. The newest manifest is not signed."""

    kind: Literal["archive"]


class VerifyArchive(_Job):
    """Every record of that archive looked at; ``head`` is a manifest's hash noted earlier."""

    kind: Literal["archive-verify"]
    head: str | None = None
    against_log: bool = False


Job = Annotated[
    Rebuild | Audit | AsOf | Replay | Archive | VerifyArchive,
    Field(discriminator="kind"),
]
#: From the kind and the arguments of a job to what was asked.
jobs: TypeAdapter[Any] = TypeAdapter(Job)
