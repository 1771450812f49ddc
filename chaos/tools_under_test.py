"""Run rebuild, audit, as-of and archive under strikes, and check that each of them is right in the end.

On the quiet stack, rebuilt rows equal the live ones byte for byte, and an audit finds nothing. A report as of a noted
moment is the one that was noted then. An archive holds every record.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
from pydantic import SecretStr

from chaos import archive_check
from chaos.commands import Ended, everyrun, problems_of_end
from chaos.stage import Stage
from everyrun.cli import exits
from everyrun.log.reading import bounds
from everyrun.projection import tables
from everyrun.projection.offsets import INPUTS
from everyrun.replay import log_position
from everyrun.replay.audit.as_of import SCHEMA as AS_OF_SCHEMA
from everyrun.replay.audit.as_of import AsOf
from everyrun.replay.rebuild.engine import applied_offsets, tables_connection
from everyrun.replay.rebuild.rebuild_schema import DEFAULT_SCHEMA
from everyrun.settings import Settings

#: Seconds within which the tables hold everything that is in the log, once the jobs are over.
_QUIET_WITHIN = 60.0
#: An audit that cannot be done ends with 2, as 1 means that it found differences.
_AUDIT_NOT_DONE = 2

#: Pairs of (the command that is struck, the command that resumes it).
Commands = Sequence[tuple[Sequence[str], Sequence[str]]]


class ToolUnderTest:
    """A tool, and how to tell if its outcome is right. Its ``commands`` are struck one after another."""

    commands: Commands
    #: Exit codes that are right if a part that the tool needs was struck.
    errors: tuple[int, ...] = (exits.ERROR,)

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage = stage
        self.folder = folder
        self.settings = Settings(
            kafka_bootstrap=stage.endpoints["kafka_bootstrap"],
            postgres_dsn=SecretStr(stage.endpoints["postgres_dsn"]),
        )

    async def prepare(self, submission_id: str) -> None:
        """Prepare the next struck run while every part is ready."""

    def check(self, ended: Ended) -> list[str]:
        """Return what is wrong with the outcome of a run that ended with 0 beside a job."""
        return []

    async def finish(self, submission_ids: list[str]) -> list[str]:
        """Repeat the tool on the quiet stack; return how it differs from the truth."""
        raise NotImplementedError

    async def ends_well(self, *command: str) -> tuple[Ended, list[str]]:
        """Run a command while every part is ready. Return how it ended, and what is wrong with that."""
        ended = await everyrun(self.stage, *command)
        name = " ".join(command[:2])
        return ended, problems_of_end(name, ended, ()) or self.check(ended)


class Rebuild(ToolUnderTest):
    """``rebuild`` and ``rebuild --swap``."""

    commands = (
        (("rebuild", "--fresh"), ("rebuild",)),
        (("rebuild", "--swap", "--fresh"), ("rebuild", "--swap")),
    )

    async def finish(self, submission_ids: list[str]) -> list[str]:
        """Compare every row of a fresh rebuild with the live row, as text."""
        await quiet(self.settings)
        _, problems = await self.ends_well("rebuild", "--fresh")
        return problems or differences(*await asyncio.gather(*(contents(self.settings, s) for s in _BOTH)))


class Audit(ToolUnderTest):
    """``audit``: a run that ends must find no difference, whatever runs beside it."""

    commands = ((("audit", "--format", "jsonl"), ("audit", "--format", "jsonl")),)
    errors = (_AUDIT_NOT_DONE,)

    async def finish(self, submission_ids: list[str]) -> list[str]:
        """Audit the quiet tables."""
        await quiet(self.settings)
        ended, problems = await self.ends_well("audit", "--format", "jsonl")
        return problems + [line for line in ended.out.splitlines()[:3] if problems]


class NotedReport(NamedTuple):
    """The report of a submission at a moment, which is a position in the log as ``as-of`` takes it."""

    moment: str
    submission_id: str
    report: dict[str, Any]


class AsOfMoments(ToolUnderTest):
    """``as-of``: the report as of a moment must equal the live report that was noted at that moment."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        super().__init__(stage, folder)
        self.noted: list[NotedReport] = []

    async def note(self, submission_id: str) -> NotedReport:
        """Note the live report of a submission and the offsets that it was made from, in one transaction."""
        async with tables_connection(self.settings, tables.SCHEMA) as live:
            while True:
                async with live.transaction(isolation="repeatable_read", readonly=True):
                    offsets = await applied_offsets(live)
                    report = await AsOf(live, offsets).report(submission_id)
                if report is not None:
                    return NotedReport(
                        log_position.format_offsets(offsets), submission_id, json.loads(json.dumps(report))
                    )
                await asyncio.sleep(0.1)

    async def prepare(self, submission_id: str) -> None:
        """Note a moment to ask for, and drop the tables of earlier moments, so that the command has work to do."""
        noted = await self.note(submission_id)
        self.noted.append(noted)
        await self._drop()
        command = ["as-of", noted.moment, "report", noted.submission_id]
        self.commands = [(command, command)]

    async def _drop(self) -> None:
        connection = await asyncpg.connect(self.settings.postgres_dsn.get_secret_value())
        try:
            await connection.execute(f"drop schema if exists {AS_OF_SCHEMA} cascade")
        finally:
            await connection.close()

    def check(self, ended: Ended) -> list[str]:
        """Return how the report differs from the one that was noted last."""
        return self._compare(ended, self.noted[-1])

    @staticmethod
    def _compare(ended: Ended, noted: NotedReport) -> list[str]:
        try:
            found = json.loads(ended.out)
        except ValueError:
            return [f"as-of wrote no JSON: {ended.out[:100]!r}"]
        if found == noted.report:
            return []
        names = [name for name in noted.report if found.get(name) != noted.report[name]]
        return [
            f"the report as of {noted.moment} differs in {', '.join(names)}: {found}; it was noted as {noted.report}"
        ]

    async def finish(self, submission_ids: list[str]) -> list[str]:
        """Ask for every noted moment again, and for the present moment by its time."""
        await quiet(self.settings)
        problems = []
        for noted in self.noted:
            ended = await everyrun(self.stage, "as-of", noted.moment, "report", noted.submission_id)
            problems += problems_of_end("as-of", ended, ()) or self._compare(ended, noted)
        for submission_id in submission_ids:
            now = await self.note(submission_id)
            ended = await everyrun(self.stage, "as-of", datetime.now(UTC).isoformat(), "report", submission_id)
            problems += problems_of_end("as-of", ended, ()) or self._compare(ended, now)
        return problems


class Archive(ToolUnderTest):
    """``archive``: each strike has its own archive, so that each run has the whole log to write."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        super().__init__(stage, folder)
        self.archives: list[str] = []

    async def prepare(self, submission_id: str) -> None:
        """Choose the folder of the next archive."""
        self.archives.append(str(self.folder / f"archive-{len(self.archives)}"))
        command = ["archive", "--to", self.archives[-1]]
        self.commands = [(command, command)]

    async def finish(self, submission_ids: list[str]) -> list[str]:
        """Bring every archive up to date, verify it, and look for every record of the log in it."""
        await quiet(self.settings)
        problems = []
        for archive in self.archives:
            _, found = await self.ends_well("archive", "--to", archive)
            problems += found
        log = await archive_check.of_log(self.settings)
        for archive in self.archives:
            _, found = await self.ends_well("archive", "verify", "--from", archive, "--against-log")
            problems += found or archive_check.missing(log, archive_check.of_archive(Path(archive)))
        return problems


TOOLS: dict[str, type[ToolUnderTest]] = {"rebuild": Rebuild, "audit": Audit, "as-of": AsOfMoments, "archive": Archive}


async def quiet(settings: Settings) -> None:
    """Wait until the live tables hold everything that is in the log. Raises TimeoutError."""
    async with asyncio.timeout(_QUIET_WITHIN), tables_connection(settings, tables.SCHEMA) as live:
        while True:
            applied = await applied_offsets(live)
            ends = (await bounds(settings, INPUTS)).end
            if all(applied.get(position, 0) == end for position, end in ends.items()):
                return
            await asyncio.sleep(0.2)


_BOTH = (tables.SCHEMA, DEFAULT_SCHEMA)
_TABLES = """
select table_name from information_schema.tables
where table_schema = $1 and table_type = 'BASE TABLE' and table_name <> 'schema_migrations'
"""


async def contents(settings: Settings, schema: str) -> dict[str, list[str]]:
    """Return the rows of every table of a schema as sorted texts; without ``applied_offsets`` that are 0."""
    connection = await asyncpg.connect(settings.postgres_dsn.get_secret_value())
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            found = {}
            for (table,) in await connection.fetch(_TABLES, schema):
                # A partition without applied records may have a row or none.
                where = "where next_offset > 0" if table == "applied_offsets" else ""
                rows = await connection.fetch(f'select t::text from {schema}."{table}" t {where}')
                found[table] = sorted(row[0] for row in rows)
            return found
    finally:
        await connection.close()


def differences(live: dict[str, list[str]], rebuilt: dict[str, list[str]]) -> list[str]:
    """Return the tables that differ, each with a row that one side lacks. Pure."""
    problems = []
    if not live.get("results"):
        problems.append("the live tables have no results: nothing was compared")
    for table in sorted(live.keys() | rebuilt.keys()):
        one, other = set(live.get(table, [])), set(rebuilt.get(table, []))
        same_number = len(live.get(table, [])) == len(rebuilt.get(table, []))
        if one != other or not same_number:
            row = next(iter(sorted(one ^ other)), "the same rows, but not the same number of each")
            problems.append(f"{table}: {len(one - other)} rows only live, {len(other - one)} only rebuilt: {row[:200]}")
    return problems
