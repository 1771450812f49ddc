"""Jobs: rebuilds, swaps, audits, questions of the past, replays, archiving, one after another, kept in Postgres.

A job whose process dies stays RUNNING, and the next process goes on with it from where its tables are.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
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
from everyrun.replay import log_position
from everyrun.replay.archive.object_store import ObjectsError
from everyrun.replay.archive.verify import verify
from everyrun.replay.archive.writer import ArchiveError, archive
from everyrun.replay.audit import compare
from everyrun.replay.audit.as_of import as_of
from everyrun.replay.audit.audit import audit
from everyrun.replay.export import replay_events
from everyrun.replay.export.targets import TargetError
from everyrun.replay.jobs.job_requests import Archive, Audit, Rebuild, Replay, VerifyArchive, jobs
from everyrun.replay.rebuild.engine import Progress
from everyrun.replay.rebuild.rebuild import Tell, rebuild, workplace
from everyrun.replay.rebuild.swap import rebuild_and_swap
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY
from everyrun.store.sql import beside
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "jobs.sql")

#: Differences that an outcome shows; the rest is counted.
SHOWN = 1000
#: What is waited for.
AWAY = (*POSTGRES_AWAY, KafkaError)
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

        job = jobs.validate_python({**row["arguments"], "kind": row["kind"]})
        doing = asyncio.create_task(self._work(job_id, job, tell, resumed))
        try:
            while not doing.done():
                await asyncio.wait([doing], timeout=0.5)
                if await self._pool.fetchval(_sql["progress"], job_id, *_numbers(progress)) == "CANCELLED":
                    doing.cancel()
                    await asyncio.wait([doing])
                    return
            await self._pool.execute(_sql["end"], job_id, "DONE", doing.result(), None)
        except EveryrunError as error:
            await self._pool.execute(_sql["end"], job_id, "FAILED", None, str(error))
        except _FOR_GOOD as error:
            await self._pool.execute(_sql["end"], job_id, "FAILED", None, describe(error))
        except AWAY as error:
            # Said to whoever asks, and tried again.
            await self._pool.execute(_sql["trouble"], job_id, describe(error))
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
                offsets = await log_position.offsets_of(settings, log_position.parse(job.until) if job.until else None)
                made = await rebuild(settings, offsets, tell, schema=job.schema_, processes=job.processes)
                return {"schema": made.schema, "records": made.before + made.applied, "offsets": _named(made.offsets)}
            case Audit():
                found = await audit(settings, tell, compare.Selection(job.batch, job.submission, job.since, job.until))
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
            case Replay():
                counts = await self._replay(job, tell)
                return {"published": counts.total(), "events": dict(sorted(counts.items()))}
            case Archive():
                with _said_of_objects():
                    kept = await archive(settings, _archive(settings), progress=_told(tell))
                return {"records": kept.records, "files": kept.files, "manifest": kept.number, "hash": kept.hash}
            case VerifyArchive():
                log_side = settings if job.against_log else None
                with _said_of_objects():
                    seen = await verify(_archive(settings), head=job.head, against_log=log_side, progress=_told(tell))
                return {
                    "whole": not seen.findings,
                    "records": seen.records,
                    "manifest": seen.number,
                    "hash": seen.hash,
                    "signed": seen.signed,
                    "findings": [str(one) for one in seen.findings[:SHOWN]],
                    "findings_total": len(seen.findings),
                    "notes": seen.notes,
                }
            case _:
                async with as_of(settings, log_position.parse(job.moment), tell) as tables:
                    row = await (tables.report(job.id) if job.what == "report" else tables.row(job.id))
                    return {"offsets": _named(tables.offsets), job.what: row}

    async def _replay(self, job: Replay, tell: Tell) -> Counter[str]:
        settings = self._settings
        replay_events.refuse_own(settings, job.to)
        if replay_events.kind_of(job.to) == "url":
            origin = "{0.scheme}://{0.netloc}".format(urlsplit(job.to))
            if origin not in settings.replay_origins:
                raise TargetError(f"EVERYRUN_REPLAY_ORIGINS does not name {origin}")
            if not settings.replay_secret.get_secret_value():
                raise TargetError("EVERYRUN_REPLAY_SECRET is not set: nothing could be signed")
        selection = job.selection()
        place = replay_events.place_of(settings, settings.data_dir, job.to, selection, None)
        return await replay_events.replay_to(
            settings, selection, job.to, place=place, rate=job.rate, progress=_told(tell)
        )


@contextmanager
def _said_of_objects() -> Iterator[None]:
    """What the folder or the object store has against it is said, and not waited for."""
    try:
        yield
    except ObjectsError as error:
        raise ArchiveError(describe(error)) from error


def _archive(settings: Settings) -> str:
    if not settings.archive_to:
        raise ArchiveError("EVERYRUN_ARCHIVE_TO is not set: there is no archive to write or look at")
    return settings.archive_to


def _told(tell: Tell) -> Callable[[int, int], None]:
    """The progress of those who count what is done, of how many."""
    progress = Progress()

    def show(done: int, total: int) -> None:
        progress.applied, progress.total = done, total
        tell(progress)

    return show


def _named(offsets: dict[Partition, int]) -> dict[str, int]:
    return {f"{topic}:{number}": offset for (topic, number), offset in sorted(offsets.items())}


def _numbers(progress: Progress) -> tuple[int, int, float, float | None]:
    done = progress.before + progress.applied
    return done, progress.before + progress.total, progress.rate, progress.left
