"""Jobs: rebuilds, swaps, audits and questions of the past, one after another, kept in Postgres.

A job whose process dies stays RUNNING, and the next process goes on with it from where its tables are.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import asyncpg
import msgspec
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, field_validator, model_validator

from everyrun.log.ranges import Position
from everyrun.projection.offsets import ForeignLogError
from everyrun.replay import moment
from everyrun.replay.asof import as_of
from everyrun.replay.audit import audit
from everyrun.replay.compare import Selection
from everyrun.replay.engine import Progress
from everyrun.replay.rebuild import DEFAULT_SCHEMA, ReplayError, Tell, rebuild, workplace
from everyrun.replay.swap import rebuild_and_swap
from everyrun.settings import Settings
from everyrun.store.migrate import MigrationError
from everyrun.store.pool import POSTGRES_AWAY
from everyrun.store.sql import beside
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "jobs.sql")

#: Differences that an outcome shows; the rest is counted.
SHOWN = 1000
#: What is waited for.
AWAY = (*POSTGRES_AWAY, KafkaError)
_REFUSED = (ReplayError, moment.MomentError, MigrationError, ForeignLogError)
#: Errors of Postgres and Kafka that waiting does not mend: a right or an object that is missing, a value that cannot be
#: stored (SQLSTATE classes 42, 22, 23); records that are deleted.
_FOR_GOOD = (
    asyncpg.SyntaxOrAccessError,
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
    GroupAuthorizationFailedError,
    ClusterAuthorizationFailedError,
)


class _Job(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _moment(text: str | None) -> str | None:
    if text is not None:
        moment.parse(text)
    return text


def _utc(moment: datetime | None) -> datetime | None:
    """UTC where no zone is said."""
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)


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
    since: Annotated[datetime | None, AfterValidator(_utc)] = None
    until: Annotated[datetime | None, AfterValidator(_utc)] = None


class AsOf(_Job):
    """A report or a row as the log had it at a moment."""

    kind: Literal["as-of"]
    moment: Annotated[str, Field(description="A time, or batches:0=12,runs:0=400,...")]
    what: Literal["report", "row"]
    id: Annotated[str, Field(description="A submission; for a row an input id.")]

    _of = field_validator("moment")(_moment)


Job = Annotated[Rebuild | Audit | AsOf, Field(discriminator="kind")]
_jobs: TypeAdapter[Any] = TypeAdapter(Job)


class Worker:
    """Does jobs one after another, in one process of all."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool) -> None:
        self._settings = settings
        self._pool = pool

    async def run(self) -> None:
        """Do every job there is, the oldest first; nothing where another process does.

        Raises errors of asyncpg and aiokafka and OSError: the job then is still to be done.
        """
        async with self._pool.acquire() as leading:
            if not await leading.fetchval(_sql["lead"]):
                return
            try:
                while (row := await self._pool.fetchrow(_sql["next"])) is not None:
                    await self._do(row)
            finally:
                await leading.execute(_sql["unlead"])

    async def _do(self, row: asyncpg.Record) -> None:
        job_id, resumed = row["job_id"], row["started_at"] is not None
        await self._pool.execute(_sql["start"], job_id)
        progress = Progress()

        def tell(now: Progress) -> None:
            nonlocal progress
            progress = now

        job = _jobs.validate_python({**row["arguments"], "kind": row["kind"]})
        doing = asyncio.create_task(self._work(job_id, job, tell, resumed))
        try:
            while not doing.done():
                await asyncio.wait([doing], timeout=0.5)
                if await self._pool.fetchval(_sql["progress"], job_id, *_numbers(progress)) == "CANCELLED":
                    doing.cancel()
                    await asyncio.wait([doing])
                    return
            await self._pool.execute(_sql["end"], job_id, "DONE", doing.result(), None)
        except _REFUSED as error:
            await self._pool.execute(_sql["end"], job_id, "FAILED", None, str(error))
        except _FOR_GOOD as error:
            await self._pool.execute(_sql["end"], job_id, "FAILED", None, f"{type(error).__name__}: {error}")
        except AWAY as error:
            # Said to whoever asks, and tried again.
            await self._pool.execute(_sql["trouble"], job_id, f"{type(error).__name__}: {error}")
            raise
        except Exception as error:
            _log.exception("a job failed", job_id=job_id)
            await self._pool.execute(_sql["end"], job_id, "FAILED", None, f"{type(error).__name__}; see the log")
        finally:
            doing.cancel()
            await asyncio.wait([doing])
        _log.info("a job ended", job_id=job_id, kind=row["kind"])

    async def _work(self, job_id: str, job: Any, tell: Tell, resumed: bool) -> dict[str, Any]:
        """Do the job; one that begins anew is begun, for good, only once what was there is dropped."""
        if isinstance(job, Rebuild) and job.fresh and not resumed:
            async with workplace(self._settings, job.schema_) as place:
                await place.drop()
        await self._pool.execute(_sql["begin"], job_id)
        return await self._outcome(job, tell)

    async def _outcome(self, job: Any, tell: Tell) -> dict[str, Any]:
        settings = self._settings
        match job:
            case Rebuild(swap=True):
                done = await rebuild_and_swap(settings, tell, schema=job.schema_, processes=job.processes)
                return {"records": done.records, "lock_held_seconds": round(done.held, 3), "left_over": done.left_over}
            case Rebuild():
                offsets = await moment.offsets_of(settings, moment.parse(job.until) if job.until else None)
                made = await rebuild(settings, offsets, tell, schema=job.schema_, processes=job.processes)
                return {"schema": made.schema, "records": made.before + made.applied, "offsets": _named(made.offsets)}
            case Audit():
                found = await audit(settings, tell, Selection(job.batch, job.submission, job.since, job.until))
                shown = msgspec.to_builtins(found.differences[:SHOWN])
                return {
                    "agrees": found.agrees,
                    "records": found.records,
                    "rows": found.rows,
                    "offsets": _named(found.offsets),
                    "differences": shown,
                    "differences_total": found.differences_total,
                    "findings": msgspec.to_builtins(found.findings),
                }
            case _:
                async with as_of(settings, moment.parse(job.moment), tell) as tables:
                    row = await (tables.report(job.id) if job.what == "report" else tables.row(job.id))
                    return {"offsets": _named(tables.offsets), job.what: row}


def _named(offsets: dict[Position, int]) -> dict[str, int]:
    return {f"{topic}:{number}": offset for (topic, number), offset in sorted(offsets.items())}


def _numbers(progress: Progress) -> tuple[int, int, float, float | None]:
    done = progress.before + progress.applied
    return done, progress.before + progress.total, progress.rate, progress.left
