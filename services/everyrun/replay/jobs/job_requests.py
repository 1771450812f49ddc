"""Define and validate the jobs that can be requested from the replay service. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, field_validator, model_validator

from everyrun.projection.offsets import INPUTS
from everyrun.replay.export import replay_events
from everyrun.replay.export.selection import EventSelection, check_topics, parse_offsets
from everyrun.replay.log_position import parse_position
from everyrun.replay.rebuild.rebuild_schema import DEFAULT_SCHEMA


class _Job(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _absolute(text: str | None) -> str | None:
    """Replace an age such as ``-5m`` with the time that it means now, because the job may run later."""
    found = None if text is None else parse_position(text)
    return found.isoformat() if isinstance(found, datetime) else text


def _with_zone(time: datetime | None) -> datetime | None:
    if time is not None and time.tzinfo is None:
        raise ValueError(f"has no time zone; write {time.isoformat()}Z for UTC")
    return time


class RebuildJob(_Job):
    """Rebuild all tables from the log in a separate schema. With `swap`, the new tables then replace the live ones."""

    kind: Literal["rebuild"]
    schema_: Annotated[
        str,
        Field(alias="schema", pattern="^[a-z_][a-z0-9_]{0,50}$", description="The schema of the rebuilt tables."),
    ] = DEFAULT_SCHEMA
    until: Annotated[
        str | None,
        Field(
            description="Rebuild up to this time or these offsets (batches:0=12,runs:0=400,...). Not allowed with swap."
        ),
    ] = None
    fresh: Annotated[bool, Field(description="Start from the beginning instead of resuming an earlier rebuild.")] = (
        False
    )
    swap: Annotated[bool, Field(description="Replace the live tables with the rebuilt ones.")] = False
    processes: Annotated[int, Field(ge=1, le=16, description="Number of processes that share the partitions.")] = 1

    _until = field_validator("until")(_absolute)

    @model_validator(mode="after")
    def _swap_without_until(self) -> RebuildJob:
        if self.swap and self.until is not None:
            raise ValueError("swap rebuilds up to the present: give either swap or until")
        return self


class AuditJob(_Job):
    """Compare the live tables with the log.

    Without a selection, every row is compared. A row matches `since` and `until` if one of its timestamps is
    between them.
    """

    kind: Literal["audit"]
    batch: Annotated[str | None, Field(description="Only rows of this batch.")] = None
    submission: Annotated[str | None, Field(description="Only rows of this submission.")] = None
    since: Annotated[
        datetime | None,
        AfterValidator(_with_zone),
        Field(description="Only rows with a timestamp at or after this time."),
    ] = None
    until: Annotated[
        datetime | None, AfterValidator(_with_zone), Field(description="Only rows with a timestamp before this time.")
    ] = None


class AsOfJob(_Job):
    """Return a submission's report or an input's row, made from the log up to a time or up to given offsets."""

    kind: Literal["as-of"]
    moment: Annotated[str, Field(description="A time, or offsets: batches:0=12,runs:0=400,...")]
    what: Annotated[Literal["report", "row"], Field(description="What to return.")]
    id: Annotated[str, Field(description="A submission id for a report, an input id for a row.")]

    _moment = field_validator("moment")(_absolute)


class ReplayJob(_Job):
    """Replay selected events to a topic or an HTTP address.

    If an earlier replay of the same selection to the same target was interrupted, the job continues it.
    """

    kind: Literal["replay"]
    to: Annotated[str, Field(description="A topic's full name, or a URL whose origin is in EVERYRUN_REPLAY_ORIGINS.")]
    batch: Annotated[str | None, Field(description="Only events about this batch.")] = None
    submission: Annotated[str | None, Field(description="Only events about this submission.")] = None
    types: Annotated[list[str], Field(description="Only events of these types.")] = []
    topics: Annotated[
        list[str], Field(description="Only events of these topics. Default: batches, runs, deliveries and quarantine.")
    ] = []
    since: Annotated[
        datetime | None, AfterValidator(_with_zone), Field(description="Only events appended at or after this time.")
    ] = None
    until: Annotated[
        datetime | None, AfterValidator(_with_zone), Field(description="Only events appended before this time.")
    ] = None
    from_offsets: Annotated[
        str | None,
        Field(
            description="Only these partitions and offsets, for example `runs:0=400,runs:1=20..90`: partition 0 of "
            "runs from offset 400 on, and partition 1 from offset 20 up to, but not including, 90."
        ),
    ] = None
    rate: Annotated[float | None, Field(gt=0, description="Maximum number of events per second.")] = None

    @field_validator("to")
    @classmethod
    def _not_a_file(cls, value: str) -> str:
        if replay_events.kind_of(value) == "file":
            raise ValueError("a job cannot write a file; use the command: everyrun replay")
        return value

    @model_validator(mode="after")
    def _valid_selection(self) -> ReplayJob:
        self.selection()
        return self

    def selection(self) -> EventSelection:
        """Return the selection of events. Raises SelectionError."""
        return EventSelection(
            topics=check_topics(self.topics) if self.topics else INPUTS,
            batch=self.batch,
            submission=self.submission,
            types=tuple(sorted(self.types)),
            since=self.since,
            until=self.until,
            offsets=parse_offsets(self.from_offsets) if self.from_offsets else {},
        )


class ArchiveJob(_Job):
    """Add to the archive in EVERYRUN_ARCHIVE_TO what is in the log but not in the archive yet.

    The job has no private key, so it does not sign the newest manifest.
    """

    kind: Literal["archive"]


class VerifyArchiveJob(_Job):
    """Verify every record of the archive in EVERYRUN_ARCHIVE_TO."""

    kind: Literal["archive-verify"]
    head: Annotated[
        str | None,
        Field(description="The hash of a manifest, noted earlier. The archive must still contain this manifest."),
    ] = None
    against_log: Annotated[bool, Field(description="Compare every record with the live log.")] = False


JobRequest = Annotated[
    RebuildJob | AuditJob | AsOfJob | ReplayJob | ArchiveJob | VerifyArchiveJob,
    Field(discriminator="kind"),
]
#: Validates a job's kind and arguments.
job_request: TypeAdapter[Any] = TypeAdapter(JobRequest)
