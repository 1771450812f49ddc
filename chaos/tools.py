"""Playing a cell in which rebuild, audit, as-of or archive runs beside jobs, while it and its bases are killed.

Every run must end with the right outcome or with a clear error. Once everything is quiet the tool must agree with the
truth: rebuilt rows equal the live ones byte for byte, an audit finds nothing, a report as of a noted moment is the one
that was noted then, and an archive holds every record.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
from aiokafka.errors import KafkaError
from pydantic import SecretStr

from chaos import archived, jobs
from chaos.background import meanwhile
from chaos.cells import INPUTS, TOOL, WITHIN, Cell, ToolStrike
from chaos.commands import Ended, Running, everyrun, unclear
from chaos.outcomes import Outcome
from chaos.play import Tell, outcome, progress_of
from chaos.stage import Stage
from chaos.strikes import all_ready, strike
from chaos.witness import Witness
from everyrun.cli import exits
from everyrun.cli.job import JobError
from everyrun.log.reading import bounds
from everyrun.projection import tables
from everyrun.replay import log_position
from everyrun.replay.audit.as_of import SCHEMA as AS_OF_SCHEMA
from everyrun.replay.audit.as_of import AsOf
from everyrun.replay.rebuild.engine import INPUTS as TOPICS
from everyrun.replay.rebuild.engine import applied_offsets, tables_connection
from everyrun.replay.rebuild.rebuild import DEFAULT_SCHEMA
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY

#: Jobs after the first are smaller: they only have to go on beside the tool.
_LATER_JOBS = 5
#: A run that ends before its strike is repeated so many times, struck sooner each time.
_TRIES = 4
#: All of the cell but its last jobs takes no longer than this, in seconds.
_STRUCK_WITHIN = 1200.0
#: The tables have everything that is in the log within so many seconds after the jobs.
_QUIET_WITHIN = 60.0
#: An audit that cannot be done ends with 2, as 1 means that it found differences.
_AUDIT_NOT_DONE = 2


Commands = Sequence[tuple[Sequence[str], Sequence[str]]]


class Toolbox:
    """A tool under test. ``commands`` are struck one after another: as begun, and as repeated after a strike."""

    #: Each is (the command that is struck, the command that goes on from there).
    commands: Commands
    errors: tuple[int, ...] = (exits.ERROR,)

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage = stage
        self.folder = folder
        self.settings = Settings(
            kafka_bootstrap=stage.endpoints["kafka_bootstrap"],
            postgres_dsn=SecretStr(stage.endpoints["postgres_dsn"]),
        )

    async def prepare(self, submission_id: str) -> None:
        """Do what must be done before each struck run, while every part is up."""

    def check(self, ended: Ended) -> list[str]:
        """Return what is wrong with the outcome of a run that ended with 0, beside a job."""
        return []

    async def finish(self, submission_ids: list[str]) -> list[str]:
        """Repeat the tool on the quiet stack; return in what it does not agree with the truth."""
        raise NotImplementedError

    async def ends_well(self, *command: str) -> tuple[Ended, list[str]]:
        """Run a command on the whole stack: it must end with 0 and the right outcome."""
        ended = await everyrun(self.stage, *command)
        name = " ".join(command[:2])
        return ended, unclear(name, ended, ()) or self.check(ended)


class Rebuild(Toolbox):
    """``rebuild`` and ``rebuild --swap``."""

    commands = (
        (("rebuild", "--fresh"), ("rebuild",)),
        (("rebuild", "--swap", "--fresh"), ("rebuild", "--swap")),
    )

    async def finish(self, submission_ids: list[str]) -> list[str]:
        """Compare every row of a fresh rebuild with the live one, as text."""
        await quiet(self.settings)
        _, problems = await self.ends_well("rebuild", "--fresh")
        return problems or differences(*await asyncio.gather(*(contents(self.settings, s) for s in _BOTH)))


class Audit(Toolbox):
    """``audit``: a run that ends must find no difference, whatever goes on beside it."""

    commands = ((("audit", "--format", "jsonl"), ("audit", "--format", "jsonl")),)
    errors = (_AUDIT_NOT_DONE,)

    async def finish(self, submission_ids: list[str]) -> list[str]:
        """Audit the quiet tables."""
        await quiet(self.settings)
        ended, problems = await self.ends_well("audit", "--format", "jsonl")
        return problems + [line for line in ended.out.splitlines()[:3] if problems]


class AsOfMoments(Toolbox):
    """``as-of``: the report as of a moment at which the same report of the live tables was noted."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        super().__init__(stage, folder)
        self.noted: list[tuple[str, str, dict[str, Any]]] = []

    async def note(self, submission_id: str) -> tuple[str, str, dict[str, Any]]:
        """Note the offsets of the live tables and the report of a submission at them, in one transaction."""
        async with tables_connection(self.settings, tables.SCHEMA) as live:
            while True:
                async with live.transaction(isolation="repeatable_read", readonly=True):
                    offsets = await applied_offsets(live)
                    report = await AsOf(live, offsets).report(submission_id)
                if report is not None:
                    return log_position.text(offsets), submission_id, json.loads(json.dumps(report))
                await asyncio.sleep(0.1)

    async def prepare(self, submission_id: str) -> None:
        """Note a moment to be asked for, and drop what is left of other moments, so that there is work to be struck."""
        noted = await self.note(submission_id)
        self.noted.append(noted)
        await self._drop()
        command = ["as-of", noted[0], "report", noted[1]]
        self.commands = [(command, command)]

    async def _drop(self) -> None:
        connection = await asyncpg.connect(self.settings.postgres_dsn.get_secret_value())
        try:
            await connection.execute(f"drop schema if exists {AS_OF_SCHEMA} cascade")
        finally:
            await connection.close()

    def check(self, ended: Ended) -> list[str]:
        """The report must be the one that was noted last."""
        return self._compare(ended, self.noted[-1])

    @staticmethod
    def _compare(ended: Ended, noted: tuple[str, str, dict[str, Any]]) -> list[str]:
        try:
            found = json.loads(ended.out)
        except ValueError:
            return [f"as-of wrote no JSON: {ended.out[:100]!r}"]
        if found == noted[2]:
            return []
        names = [name for name in noted[2] if found.get(name) != noted[2][name]]
        return [f"the report as of {noted[0]} differs in {', '.join(names)}: {found}, noted was {noted[2]}"]

    async def finish(self, submission_ids: list[str]) -> list[str]:
        """Ask for every noted moment again, and for the present one by its time."""
        await quiet(self.settings)
        problems = []
        for noted in self.noted:
            ended = await everyrun(self.stage, "as-of", noted[0], "report", noted[1])
            problems += unclear("as-of", ended, ()) or self._compare(ended, noted)
        for submission_id in submission_ids:
            now = await self.note(submission_id)
            ended = await everyrun(self.stage, "as-of", datetime.now(UTC).isoformat(), "report", submission_id)
            problems += unclear("as-of", ended, ()) or self._compare(ended, now)
        return problems


class Archive(Toolbox):
    """``archive``: an archive of its own for each strike, so that each has the whole log to write."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        super().__init__(stage, folder)
        self.places: list[str] = []

    async def prepare(self, submission_id: str) -> None:
        """Begin another archive."""
        self.places.append(str(self.folder / f"archive-{len(self.places)}"))
        command = ["archive", "--to", self.places[-1]]
        self.commands = [(command, command)]

    async def finish(self, submission_ids: list[str]) -> list[str]:
        """Bring every archive up to date, verify it, and look for every record of the log in it."""
        await quiet(self.settings)
        problems = []
        for place in self.places:
            _, found = await self.ends_well("archive", "--to", place)
            problems += found
        log = await archived.of_log(self.settings)
        for place in self.places:
            _, found = await self.ends_well("archive", "verify", "--from", place, "--against-log")
            problems += found or archived.missing(log, archived.of_archive(Path(place)))
        return problems


TOOLS: dict[str, type[Toolbox]] = {"rebuild": Rebuild, "audit": Audit, "as-of": AsOfMoments, "archive": Archive}


async def play(
    stage: Stage, cell: Cell, seed: int, tell: Tell, inputs: int = INPUTS, within: float = WITHIN
) -> Outcome:
    """Play the cell: jobs one after another beside the tool; each must end balanced and equal to the truth."""
    await all_ready(stage.stack)
    await stage.faults(cell.faults)
    witness = await Witness.now(stage.endpoints["kafka_bootstrap"])
    skip = await stage.runs()
    deaths, began = stage.deaths(), time.monotonic()
    total = {"settled": 0, "expected": 0}
    doubles = duplicates = runs = 0
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="everyrun-chaos-tool-") as folder:
        tool = TOOLS[cell.tool](stage, Path(folder))
        try:
            async with asyncio.timeout(_STRUCK_WITHIN), _jobs_beside(stage, inputs, within, tell) as beside:
                found, runs = await _strike(tool, cell.tool_strikes(seed), beside)
                problems += found
            deadline = time.monotonic() + within
            for submission_id in beside.submission_ids:
                where = stage.http, stage.endpoints, submission_id
                judged = await jobs.judged(*where, witness, deadline, skip)
                problems += [f"{submission_id}: {problem}" for problem in judged.problems]
                total = {name: total[name] + judged.report[name] for name in total}
                doubles += judged.comparison.double_batches
                duplicates += judged.comparison.duplicates
            problems += await tool.finish(beside.submission_ids)
        except (JobError, KafkaError, *POSTGRES_AWAY) as error:
            problems.append(f"{type(error).__name__}: {error}" if str(error) else "the cell did not end in time")
    what = f"{runs} runs beside the jobs, then repeated on the quiet stack"
    kept = stage.deaths() - deaths
    return outcome(cell, seed, began, problems, total, duplicates, doubles, deaths=kept, what=what)


class _Beside:
    """Jobs that are handed in one after another."""

    def __init__(self, stage: Stage, within: float, tell: Tell) -> None:
        self._stage = stage
        self._within = within
        self._tell = tell
        self.submission_ids: list[str] = []
        self.settled = asyncio.Event()
        self.over = asyncio.Event()
        self.ended = asyncio.Event()

    async def run(self, inputs: int) -> None:
        """Hand jobs in until it is over, each when the one before it has no open input left."""
        count = inputs
        try:
            while not self.over.is_set():
                submission_id = await jobs.hand_in(self._stage.http, self._stage.endpoints, count)
                self.submission_ids.append(submission_id)
                # No deadline while parts are killed again and again; after that the jobs are judged.
                where = self._stage.http, self._stage.endpoints, submission_id
                await jobs.settled(*where, float("inf"), self._note)
                count = max(inputs // _LATER_JOBS, 1)
        finally:
            # Also if a job could not be handed in: nobody waits for it then.
            self.settled.set()
            self.ended.set()

    def _note(self, report: dict[str, Any]) -> None:
        if report["settled"]:
            self.settled.set()
        self._tell(f"job {len(self.submission_ids)} beside the tool: {progress_of(report)}")


@asynccontextmanager
async def _jobs_beside(stage: Stage, inputs: int, within: float, tell: Tell) -> AsyncIterator[_Beside]:
    """Have jobs go on while the block runs; the last of them gets ``within`` seconds after it. Raises TimeoutError."""
    beside = _Beside(stage, within, tell)
    async with meanwhile(beside.run(inputs)):
        yield beside
        beside.over.set()
        async with asyncio.timeout(within):
            await beside.ended.wait()


async def _strike(tool: Toolbox, strikes: list[ToolStrike], beside: _Beside) -> tuple[list[str], int]:
    """Strike every command of the tool by every strike; return what was wrong, and the number of runs."""
    await beside.settled.wait()
    if not beside.submission_ids:
        return [], 0
    problems: list[str] = []
    runs = 0
    await tool.prepare(beside.submission_ids[-1])
    for number in range(len(tool.commands)):
        first, _ = tool.commands[number]
        measured, found = await tool.ends_well(*first)
        problems += found
        runs += 1
        for given in strikes:
            found, tried = await _struck(tool, number, given, measured.seconds, beside)
            problems += found
            runs += tried
    return problems, runs


async def _struck(
    tool: Toolbox, number: int, given: ToolStrike, seconds: float, beside: _Beside
) -> tuple[list[str], int]:
    """Start the tool, strike it or what it stands on in the middle, start it again, and once more when all is up."""
    stage, problems = tool.stage, []
    for tried in range(_TRIES):
        await all_ready(stage.stack)
        await tool.prepare(beside.submission_ids[-1])
        begin, again = tool.commands[number]
        name = f"{begin[0]} with a strike at {given.part}"
        running = await Running.start(stage, *begin)
        try:
            if await running.ends_within(seconds * given.moment * 0.7**tried):
                # Too quick this time: its outcome counts, and the strike comes sooner.
                ended = await running.ended()
                problems += unclear(begin[0], ended, ()) or tool.check(ended)
                continue
            if given.part == TOOL:
                running.kill()
            else:
                await strike(stage.stack, given.part, "kill")
            ended = await running.ended()
        finally:
            running.kill()
        if given.part != TOOL:
            problems += _acceptable(tool, name, ended)
        # At once, when what it stands on may still be away; and when everything is up again.
        problems += _acceptable(tool, f"{name}, again at once", await everyrun(stage, *again))
        await all_ready(stage.stack)
        _, found = await tool.ends_well(*again)
        return problems + found, tried + 3
    return [*problems, f"{begin[0]} ended {_TRIES} times before {given.part} could be struck"], _TRIES


def _acceptable(tool: Toolbox, name: str, ended: Ended) -> list[str]:
    """Return what is wrong with a run under strikes: the right outcome and a clear error are both right."""
    problems = unclear(name, ended, tool.errors)
    return problems or (tool.check(ended) if ended.code == 0 else [])


async def quiet(settings: Settings) -> None:
    """Return once the live tables have everything that is in the log. Raises TimeoutError."""
    async with asyncio.timeout(_QUIET_WITHIN), tables_connection(settings, tables.SCHEMA) as live:
        while True:
            applied = await applied_offsets(live)
            ends = (await bounds(settings, TOPICS)).end
            if all(applied.get(position, 0) == end for position, end in ends.items()):
                return
            await asyncio.sleep(0.2)


_BOTH = (tables.SCHEMA, DEFAULT_SCHEMA)
_TABLES = """
select table_name from information_schema.tables
where table_schema = $1 and table_type = 'BASE TABLE' and table_name <> 'schema_migrations'
"""


async def contents(settings: Settings, schema: str) -> dict[str, list[str]]:
    """Return every row of every table of a schema as text, sorted; of ``applied_offsets`` what is not at 0."""
    connection = await asyncpg.connect(settings.postgres_dsn.get_secret_value())
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            found = {}
            for (table,) in await connection.fetch(_TABLES, schema):
                # A partition nothing of which was applied may have a row, or none.
                where = "where next_offset > 0" if table == "applied_offsets" else ""
                rows = await connection.fetch(f'select t::text from {schema}."{table}" t {where}')
                found[table] = sorted(row[0] for row in rows)
            return found
    finally:
        await connection.close()


def differences(live: dict[str, list[str]], rebuilt: dict[str, list[str]]) -> list[str]:
    """Return the tables that are not the same, each with a row that one of them lacks. Pure."""
    problems = []
    if not live.get("results"):
        problems.append("the live tables have no results: nothing was compared")
    for table in sorted(live.keys() | rebuilt.keys()):
        one, other = set(live.get(table, [])), set(rebuilt.get(table, []))
        same_number = len(live.get(table, [])) == len(rebuilt.get(table, []))
        if one != other or not same_number:
            row = next(iter(sorted(one ^ other)), "the same rows, not as often")
            problems.append(f"{table}: {len(one - other)} rows only live, {len(other - one)} only rebuilt: {row[:200]}")
    return problems
