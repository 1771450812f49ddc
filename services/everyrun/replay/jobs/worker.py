"""Run jobs one after another: rebuilds, swaps, audits, as-of questions, replays, archives.

If the process that runs a job ends, the job stays RUNNING. The next process resumes the job from the tables that the
job has filled so far, or from its checkpoint.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import msgspec
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)

from everyrun.errors import EveryrunError
from everyrun.log.reading import Partition
from everyrun.redact import describe
from everyrun.replay.archive.object_store import OBJECT_STORE_ERRORS
from everyrun.replay.archive.verify import verify
from everyrun.replay.archive.writer import archive
from everyrun.replay.audit.as_of import as_of
from everyrun.replay.audit.compare import RowSelection
from everyrun.replay.audit.table_audit import audit
from everyrun.replay.errors import ArchiveError, TargetError
from everyrun.replay.export import replay_events
from everyrun.replay.jobs.job_requests import (
    ArchiveJob,
    AsOfJob,
    AuditJob,
    RebuildJob,
    ReplayJob,
    VerifyArchiveJob,
    job_request,
)
from everyrun.replay.log_position import parse_position, resolve_offsets
from everyrun.replay.progress import OnProgress, OnRebuildProgress, RebuildProgress
from everyrun.replay.rebuild.rebuild_schema import hold_schema, rebuild
from everyrun.replay.rebuild.swap import rebuild_and_swap
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY
from everyrun.store.sql import beside
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "worker.sql")

#: Maximum number of differences or defects that an outcome lists; further ones are only counted.
LISTED = 1000
#: Errors after which the job is retried: Postgres or Kafka is unavailable.
UNAVAILABLE = (*POSTGRES_AWAY, KafkaError)
#: Errors of Postgres and Kafka after which the job fails, because a retry would not help: a missing right or object or
#: a value that cannot be stored (SQLSTATE classes 42, 22 and 23), or records that Kafka has deleted.
_PERMANENT = (
    asyncpg.SyntaxOrAccessError,
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
    GroupAuthorizationFailedError,
    ClusterAuthorizationFailedError,
)


class Worker:
    """Runs jobs. If there are several processes, one of them is the leader and runs all jobs."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool) -> None:
        self._settings = settings
        self._pool = pool

    async def run(self) -> None:
        """Run all waiting jobs, the oldest first. Return at once if another process is the leader.

        Raises errors of asyncpg and aiokafka, and OSError. After such an error, call this again to resume the job.
        """
        async with self._pool.acquire() as lock_connection:
            if not await lock_connection.fetchval(_sql["try_lead"]):
                return
            try:
                while (row := await self._pool.fetchrow(_sql["next"])) is not None:
                    await self._run_job(row)
            finally:
                await lock_connection.execute(_sql["stop_leading"])

    async def _run_job(self, row: asyncpg.Record) -> None:
        """Run a job to its end. Meanwhile write its progress to Postgres, and stop if the job was cancelled there."""
        job_id, resumed = row["job_id"], row["started_at"] is not None
        await self._pool.execute(_sql["run"], job_id)
        progress = RebuildProgress()

        def on_progress(now: RebuildProgress) -> None:
            nonlocal progress
            progress = now

        job = job_request.validate_python({**row["arguments"], "kind": row["kind"]})
        work = asyncio.create_task(self._work(job_id, job, on_progress, resumed))
        try:
            while not work.done():
                await asyncio.wait([work], timeout=0.5)
                state = await self._pool.fetchval(_sql["report_progress"], job_id, *_numbers(progress))
                if state == "CANCELLED":
                    work.cancel()
                    await asyncio.wait([work])
                    return
            await self._pool.execute(_sql["end"], job_id, "DONE", work.result(), None)
        except EveryrunError as error:
            await self._pool.execute(_sql["end"], job_id, "FAILED", None, str(error))
        except _PERMANENT as error:
            await self._pool.execute(_sql["end"], job_id, "FAILED", None, describe(error))
        except UNAVAILABLE as error:
            # While the job waits for the retry, it shows the reason.
            await self._pool.execute(_sql["set_message"], job_id, describe(error))
            raise
        except Exception as error:
            _log.exception("a job failed", job_id=job_id)
            message = f"{type(error).__name__}; see the service's own log"
            await self._pool.execute(_sql["end"], job_id, "FAILED", None, message)
        finally:
            work.cancel()
            await asyncio.wait([work])
        _log.info("a job ended", job_id=job_id, kind=row["kind"])

    async def _work(self, job_id: str, job: Any, on_progress: OnRebuildProgress, resumed: bool) -> dict[str, Any]:
        """Do the work of a job, and return the outcome.

        A rebuild with ``fresh`` first drops the tables of an earlier rebuild. Only then is the job marked as started.
        So if this job is resumed, it does not drop the tables that it has rebuilt itself.
        """
        if isinstance(job, RebuildJob) and job.fresh and not resumed:
            async with hold_schema(self._settings, job.schema_) as held:
                await held.drop()
        await self._pool.execute(_sql["mark_started"], job_id)
        return await self._outcome(job, on_progress)

    async def _outcome(self, job: Any, on_progress: OnRebuildProgress) -> dict[str, Any]:
        match job:
            case RebuildJob():
                return await self._rebuild(job, on_progress)
            case AuditJob():
                return await self._audit(job, on_progress)
            case AsOfJob():
                return await self._as_of(job, on_progress)
            case ReplayJob():
                return await self._replay(job, on_progress)
            case ArchiveJob():
                return await self._archive(on_progress)
            case VerifyArchiveJob():
                return await self._verify_archive(job, on_progress)
            case _:
                raise TypeError(f"unknown job {type(job).__name__}")

    async def _rebuild(self, job: RebuildJob, on_progress: OnRebuildProgress) -> dict[str, Any]:
        settings = self._settings
        if job.swap:
            swapped = await rebuild_and_swap(settings, on_progress, schema=job.schema_, processes=job.processes)
            return {
                "records": swapped.records,
                "lock_held_seconds": round(swapped.lock_seconds, 3),
                "left_over": swapped.left_over,
            }
        offsets = await resolve_offsets(settings, parse_position(job.until) if job.until else None)
        rebuilt = await rebuild(settings, offsets, on_progress, schema=job.schema_, processes=job.processes)
        records = rebuilt.before + rebuilt.applied
        return {"schema": rebuilt.schema, "records": records, "offsets": _by_name(rebuilt.offsets)}

    async def _audit(self, job: AuditJob, on_progress: OnRebuildProgress) -> dict[str, Any]:
        selection = RowSelection(job.batch, job.submission, job.since, job.until)
        result = await audit(self._settings, on_progress, selection)
        return {
            "agrees": result.agrees,
            "records": result.records,
            "rows": result.rows,
            "offsets": _by_name(result.offsets),
            "differences": msgspec.to_builtins(result.differences[:LISTED]),
            "differences_total": result.differences_total,
            "findings": msgspec.to_builtins(result.findings),
        }

    async def _as_of(self, job: AsOfJob, on_progress: OnRebuildProgress) -> dict[str, Any]:
        async with as_of(self._settings, parse_position(job.moment), on_progress) as tables:
            found = await (tables.report(job.id) if job.what == "report" else tables.row(job.id))
            return {"offsets": _by_name(tables.offsets), job.what: found}

    async def _replay(self, job: ReplayJob, on_progress: OnRebuildProgress) -> dict[str, Any]:
        settings = self._settings
        replay_events.refuse_own(settings, job.to)
        if replay_events.kind_of(job.to) == "url":
            origin = "{0.scheme}://{0.netloc}".format(urlsplit(job.to))
            if origin not in settings.replay_origins:
                raise TargetError(f"{origin} is not allowed: add it to EVERYRUN_REPLAY_ORIGINS")
            if not settings.replay_secret.get_secret_value():
                raise TargetError("EVERYRUN_REPLAY_SECRET is not set, so events cannot be signed")
        selection = job.selection()
        counts: Counter[str] = await replay_events.replay(
            settings,
            selection,
            job.to,
            checkpoint=replay_events.checkpoint_path(settings, settings.data_dir, job.to, selection, None),
            rate=job.rate,
            on_progress=_counting(on_progress),
        )
        return {"published": counts.total(), "events": dict(sorted(counts.items()))}

    async def _archive(self, on_progress: OnRebuildProgress) -> dict[str, Any]:
        with _store_errors_are_final():
            result = await archive(self._settings, self._archive_location(), on_progress=_counting(on_progress))
        return {"records": result.records, "files": result.files, "manifest": result.number, "hash": result.hash}

    async def _verify_archive(self, job: VerifyArchiveJob, on_progress: OnRebuildProgress) -> dict[str, Any]:
        with _store_errors_are_final():
            result = await verify(
                self._archive_location(),
                head=job.head,
                against_log=self._settings if job.against_log else None,
                on_progress=_counting(on_progress),
            )
        return {
            "whole": not result.findings,
            "records": result.records,
            "manifest": result.number,
            "hash": result.hash,
            "signed": result.signed,
            "findings": [str(defect) for defect in result.findings[:LISTED]],
            "findings_total": len(result.findings),
            "notes": result.notes,
        }

    def _archive_location(self) -> str:
        if not self._settings.archive_to:
            raise ArchiveError("EVERYRUN_ARCHIVE_TO is not set, so there is no archive to write or verify")
        return self._settings.archive_to


@contextmanager
def _store_errors_are_final() -> Iterator[None]:
    """Turn errors of the folder or object store into ArchiveError, so that the job fails instead of being retried."""
    try:
        yield
    except OBJECT_STORE_ERRORS as error:
        raise ArchiveError(describe(error)) from error


def _counting(on_progress: OnRebuildProgress) -> OnProgress:
    """Return a callback that takes two numbers (done and total) and passes them on as a RebuildProgress."""
    progress = RebuildProgress()

    def report(done: int, total: int) -> None:
        progress.applied, progress.total = done, total
        on_progress(progress)

    return report


def _by_name(offsets: dict[Partition, int]) -> dict[str, int]:
    return {f"{topic}:{number}": offset for (topic, number), offset in sorted(offsets.items())}


def _numbers(progress: RebuildProgress) -> tuple[int, int, float, float | None]:
    done = progress.before + progress.applied
    return done, progress.before + progress.total, progress.rate, progress.left
