"""The promises, over any order of what can happen: the real protocol and the real join, a vendor and a log in memory.

A state machine of Hypothesis submits, sends (with answers, without, crashing between any two steps), and moves runs on.
It delivers their webhooks once, often, late or never. It polls, sweeps, crashes the processor, reads again, and
restores old tables. After every step, it looks for errors that must never occur. At the end, it settles everything and
compares the result with the truth.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import defaultdict
from collections.abc import Coroutine
from typing import Any, ClassVar, NamedTuple

import asyncpg
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from everyrun.cli.emulator_check import compare
from everyrun.extend.reserved import Reserved
from everyrun.log import events
from everyrun.log.cloudevents import Record
from everyrun.log.reading import Poll
from everyrun.projection import tables
from everyrun.projection.apply import apply
from everyrun.projection.offsets import GapError
from everyrun.projection.rules.merge import FINAL
from everyrun.submission.dispatch.classify import Accepted, InDoubt, Refused, Returned
from everyrun.submission.dispatch.protocol import (
    Answered,
    ChunkState,
    Claimed,
    EvidenceFound,
    NotPossibleError,
    Step,
    WindowPassed,
    WorkerLost,
    step,
)
from tests.records import INSTALLATION, LOG, Logged, an_input, batch_event, run_event

LONG = bool(os.environ.get("EVERYRUN_CHAOS"))
TABLES = ("submissions", "batches", "results", "other_runs", "unmatched_runs", "deliveries", "quarantine")
ALL = (*TABLES, "applied_offsets")
EMPTY = "".join(f"delete from {table};" for table in ALL)
DUMP = "".join(f"delete from dump.{table}; insert into dump.{table} select * from {table};" for table in ALL)
RESTORE = EMPTY + "".join(f"insert into {table} select * from dump.{table};" for table in ALL)
PARTITIONS, RESENDS = 2, 2


class Run(NamedTuple):
    """A run at the vendor."""

    run_id: str
    batch_id: str
    key: Reserved
    status: str
    end: int | None


class World:
    """The queue, the vendor and the log in memory; the tables in Postgres."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.clock = 0
        self.inputs: dict[str, list[events.Input]] = {}
        self.queue: dict[str, ChunkState] = {}
        self.runs: dict[str, Run] = {}
        self.batches: dict[str, tuple[str, int]] = {}
        self.webhooks: list[Record] = []
        self.log: dict[tuple[str, int], list[Logged]] = defaultdict(list)
        #: Up to where the consumer group has acknowledged.
        self.read: dict[tuple[str, int], int] = defaultdict(int)

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def append(self, record: Record) -> None:
        place = record.topic, sum(record.key) % PARTITIONS
        there = self.log[place]
        there.append(
            Logged("everyrun." + record.topic, place[1], len(there), record.key, record.value, record.headers, 1)
        )

    # --- the queue and its dispatcher

    def publish(self, chunk: str, done: Step, **more: Any) -> None:
        kinds = {
            "batch-requested": events.BatchRequested,
            "batch-returned": events.BatchReturned,
            "batch-in-doubt": events.BatchInDoubt,
            "doubt-resent": events.DoubtResent,
            "batch-submitted": events.BatchSubmitted,
            "batch-rejected": events.BatchRejected,
        }
        submission = chunk.partition(".")[0]
        for said in done.events:
            extra: dict[str, Any] = {"reason": "a reason"}
            if said.kind == "batch-requested":
                extra = {"inputs": self.inputs[chunk]}
            elif said.kind == "batch-submitted":
                extra = {"inputs": self.inputs[chunk], "batch_id": more["batch_id"]}
            elif said.kind == "batch-rejected":
                extra = {"inputs": self.inputs[chunk], "status": 400, "code": "INVALID_REQUEST", "message": "no"}
            self.append(batch_event(kinds[said.kind], submission, chunk, said.attempt, self.tick(), **extra))

    def in_state(self, *states: str) -> list[str]:
        return sorted(chunk for chunk, state in self.queue.items() if state.state in states)

    def send(self, chunk: str, fate: str, crash: str) -> None:
        """One attempt: what the vendor does with it, and after which of its steps the dispatcher dies."""
        claimed = step(self.queue[chunk], Claimed())
        self.queue[chunk] = claimed.after
        self.publish(chunk, claimed)
        if crash == "after intent":
            return
        batch_id = f"batch_{len(self.batches)}"
        verdict: Any = {
            "taken": Accepted(batch_id),
            "taken unanswered": InDoubt("time-out"),
            "unanswered": InDoubt("time-out"),
            "refused": Refused(400, "INVALID_REQUEST", "no"),
            "limited": Returned("429"),
        }[fate]
        if fate.startswith("taken"):
            self.batches[batch_id] = (chunk, claimed.after.attempt)
            for given in self.inputs[chunk]:
                key = Reserved(INSTALLATION, given.input_id, chunk, claimed.after.attempt, given.position)
                run_id = f"run_{len(self.runs) * 7919 % 997:03d}_{len(self.runs)}"
                self.runs[run_id] = Run(run_id, batch_id, key, "PENDING", None)
        if crash == "after POST":
            return
        done = step(claimed.after, Answered(claimed.after.attempt, verdict))
        self.publish(chunk, done, batch_id=batch_id)
        if crash != "after produce":
            self.queue[chunk] = done.after

    def happen(self, chunk: str, trigger: Any, **more: Any) -> None:
        done = step(self.queue[chunk], trigger)
        self.publish(chunk, done, **more)
        self.queue[chunk] = done.after

    async def adopt(self) -> None:
        """Take the evidence that lies in the tables."""
        found = await self.connection.fetch(
            "select chunk, attempt, batch_id, min(run_id) as run_id from unmatched_runs where installation = $1 "
            "and batch_id is not null and reason = 'batch_unknown' group by 1, 2, 3 order by 1, 2",
            INSTALLATION,
        )
        for chunk, attempt, batch_id, run_id in found:
            if self.queue[chunk].batch_id != batch_id:
                try:
                    self.happen(chunk, EvidenceFound(attempt, batch_id, run_id), batch_id=batch_id)
                except NotPossibleError:
                    continue

    async def take_logged_outcomes(self) -> None:
        """Mark the attempts whose outcome is in the tables, even if their workers did not mark them."""
        rows = await self.connection.fetch(
            "select chunk, attempt, batch_id, rejected_at from batches "
            "where batch_id is not null or rejected_at is not null"
        )
        for row in rows:
            state = self.queue[row["chunk"]]
            if state.state in ("sending", "in_doubt") and state.attempt == row["attempt"]:
                after = "submitted" if row["batch_id"] else "refused"
                self.queue[row["chunk"]] = ChunkState(after, state.attempt, state.resends, row["batch_id"])

    # --- the vendor

    def observe(self, run: Run, source: str) -> Record:
        end = run.end
        key = run.key
        return run_event(run.run_id, run.batch_id, run.status, self.tick(), key=key, end=end, source=source)

    def move(self, run_id: str, status: str) -> None:
        self.runs[run_id] = self.runs[run_id]._replace(status=status, end=self.tick())
        self.webhooks.append(self.observe(self.runs[run_id], "webhook"))

    def open_runs(self) -> list[str]:
        return sorted(run_id for run_id, run in self.runs.items() if run.status not in FINAL)

    # --- the processor

    async def consume(self, chance: random.Random, *, acknowledge: bool) -> None:
        """Take a poll of some partitions into the tables, gaps before it first."""
        polls = []
        for place in sorted(self.log):
            start = self.read[place]
            records = self.log[place][start : start + chance.choice((1, 3, 1000))]
            if records and chance.random() < 0.8:
                polls.append(Poll(*place, records))
        if not polls:
            return
        while True:
            try:
                await apply(self.connection, polls, LOG, _nothing_aside)
                break
            except GapError as error:
                for place, start in error.gaps.items():
                    end = next(poll.first for poll in polls if (poll.topic, poll.partition) == place)
                    await apply(self.connection, [Poll(*place, self.log[place][start:end])], LOG, _nothing_aside)
        if acknowledge:
            self.read.update({(poll.topic, poll.partition): poll.end for poll in polls})

    async def heal(self) -> None:
        """Fill in what the tables lack of what was acknowledged, as the processor does after a restore."""
        rows = await self.connection.fetch("select topic, partition, next_offset from applied_offsets")
        applied = {(row["topic"], row["partition"]): row["next_offset"] for row in rows}
        for place, end in sorted(self.read.items()):
            if records := self.log[place][applied.get(place, 0) : end]:
                await apply(self.connection, [Poll(*place, records)], LOG, _nothing_aside)

    async def catch_up(self) -> None:
        await self.heal()
        chance = random.Random(0)
        while any(self.read[place] < len(records) for place, records in self.log.items()):
            await self.consume(chance, acknowledge=True)

    async def rows(self) -> dict[str, list[str]]:
        """Every row of every table, as text."""
        return {t: [r[0] for r in await self.connection.fetch(f"select x::text from {t} x order by 1")] for t in TABLES}


async def _nothing_aside(poison: Any) -> None:
    raise AssertionError(poison)


class Machine(RuleBasedStateMachine):
    """Everything that can happen, in any order."""

    runner: ClassVar[asyncio.Runner]
    connection: ClassVar[asyncpg.Connection]

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.connection)
        self.has_dump = False
        self.do(self.connection.execute(EMPTY))

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    @initialize(sizes=st.lists(st.integers(1, 2), min_size=2, max_size=3))
    def submit(self, sizes: list[int]) -> None:
        for number, inputs in enumerate(sizes):
            chunk = f"sub_{number}.c1"
            self.world.inputs[chunk] = [an_input(f"sub_{number}", n + 1) for n in range(inputs)]
            self.world.queue[chunk] = ChunkState("waiting")

    # Hypothesis leaves out some rules in each example: sending is three, so that it is seldom left out.

    @precondition(lambda self: self.world.in_state("waiting"))
    @rule(data=st.data(), fate=st.sampled_from(("taken", "taken", "refused", "limited")))
    def send_and_hear(self, data: st.DataObject, fate: str) -> None:
        self.world.send(data.draw(st.sampled_from(self.world.in_state("waiting"))), fate, "")

    @precondition(lambda self: self.world.in_state("waiting"))
    @rule(data=st.data(), taken=st.booleans())
    def send_and_hear_nothing(self, data: st.DataObject, taken: bool) -> None:
        chunk = data.draw(st.sampled_from(self.world.in_state("waiting")))
        self.world.send(chunk, "taken unanswered" if taken else "unanswered", "")

    @precondition(lambda self: self.world.in_state("waiting"))
    @rule(
        data=st.data(),
        fate=st.sampled_from(("taken", "refused", "taken unanswered")),
        crash=st.sampled_from(("after intent", "after POST", "after produce")),
    )
    def send_and_die(self, data: st.DataObject, fate: str, crash: str) -> None:
        self.world.send(data.draw(st.sampled_from(self.world.in_state("waiting"))), fate, crash)

    @precondition(lambda self: self.world.in_state("sending", "in_doubt"))
    @rule(data=st.data(), long=st.booleans())
    def time_passes(self, data: st.DataObject, long: bool) -> None:
        """A worker is known to be lost; or the window of an attempt in doubt is over; or first one, then the other."""
        chunk = data.draw(st.sampled_from(self.world.in_state("sending", "in_doubt")))
        attempt = self.world.queue[chunk].attempt
        if self.world.queue[chunk].state == "sending":
            self.world.happen(chunk, WorkerLost(attempt))
        if long and self.world.queue[chunk].state == "in_doubt":
            self.world.happen(chunk, WindowPassed(attempt, RESENDS))

    @precondition(lambda self: self.world.queue)
    @rule()
    def resolve(self) -> None:
        self.do(self.world.adopt())
        self.do(self.world.take_logged_outcomes())

    @precondition(lambda self: self.world.runs)
    @rule(data=st.data(), status=st.sampled_from(("PROCESSED", "PROCESSED", "FAILED", "NEEDS_REVIEW", "CANCELLED")))
    def run_moves_on(self, data: st.DataObject, status: str) -> None:
        """An open run ends or waits for a person; one that failed is made again."""
        run_id = data.draw(st.sampled_from(sorted(self.world.runs)))
        before = self.world.runs[run_id].status
        if before not in FINAL:
            self.world.move(run_id, status)
        elif before == "FAILED":
            self.world.move(run_id, "PROCESSED")

    @precondition(lambda self: self.world.webhooks)
    @rule(data=st.data())
    def webhook(self, data: st.DataObject) -> None:
        """Any that was ever sent: so they come late, twice, in any order, or never."""
        self.world.append(data.draw(st.sampled_from(self.world.webhooks)))

    @precondition(lambda self: self.world.runs)
    @rule(data=st.data())
    def poll_or_sweep(self, data: st.DataObject) -> None:
        run_id = data.draw(st.sampled_from(sorted(self.world.runs)))
        self.world.append(self.world.observe(self.world.runs[run_id], "poll"))

    @precondition(lambda self: self.world.log)
    @rule(seed=st.integers(0, 999), crash=st.booleans(), back=st.sampled_from((0, 0, 1, 5)))
    def consume(self, seed: int, crash: bool, back: int) -> None:
        """A poll is applied, and acknowledged or not; sometimes one is read that was applied long ago."""
        for place, position in self.world.read.items():
            self.world.read[place] = max(position - back, 0)
        self.do(self.world.consume(random.Random(seed), acknowledge=not crash))

    @precondition(lambda self: self.world.log)
    @rule(what=st.sampled_from(("dump", "restore", "lose")))
    def database(self, what: str) -> None:
        """The tables are dumped, restored from the last dump, or lost."""
        if what == "dump":
            self.do(self.connection.execute(DUMP))
            self.has_dump = True
        else:
            self.do(self.connection.execute(RESTORE if what == "restore" and self.has_dump else EMPTY))

    @invariant()
    def every_batch_is_balanced(self) -> None:
        unbalanced = self.do(self.connection.fetch("select * from report where not balanced"))
        assert not unbalanced, [dict(row) for row in unbalanced]

    @invariant()
    def none_is_refused_that_may_have_been_taken(self) -> None:
        taken = {chunk for chunk, _ in self.world.batches.values()}
        assert not taken & set(self.world.in_state("refused"))

    @invariant()
    def a_chunk_is_sent_again_only_when_it_was_given_up(self) -> None:
        for chunk, state in self.world.queue.items():
            batches = sum(there == chunk for there, _ in self.world.batches.values())
            assert batches <= 1 + state.resends

    @invariant()
    def no_input_has_more_than_its_row_and_no_row_is_of_nobody(self) -> None:
        known = {given.input_id for inputs in self.world.inputs.values() for given in inputs}
        rows = self.do(self.connection.fetch("select input_id from results"))
        assert {row["input_id"] for row in rows} <= known

    def teardown(self) -> None:
        """Bring everything to rest: then all is accounted for, and as it is in truth."""
        world = self.world
        if world.queue:
            self.do(self._come_to_rest())
            self.do(self._compare_with_the_truth())

    async def _come_to_rest(self) -> None:
        world = self.world
        for _ in range(RESENDS + 3):
            for run in list(world.runs.values()):
                world.append(world.observe(run, "poll"))
            await world.catch_up()
            await world.take_logged_outcomes()
            for chunk in world.in_state("sending"):
                world.happen(chunk, WorkerLost(world.queue[chunk].attempt))
            await world.adopt()
            for chunk in world.in_state("in_doubt"):
                world.happen(chunk, WindowPassed(world.queue[chunk].attempt, RESENDS))
            for chunk in world.in_state("waiting"):
                world.send(chunk, "taken", "")
        for run_id in world.open_runs():
            world.move(run_id, "PROCESSED")
        for run in world.runs.values():
            world.append(world.observe(run, "poll"))
        for _ in range(3):
            await world.catch_up()
            await world.adopt()

    async def _compare_with_the_truth(self) -> None:
        world = self.world
        assert not world.in_state("waiting", "sending", "in_doubt")
        truth = [
            {"run_id": run.run_id, "batch_id": run.batch_id, "status": run.status, "metadata": _metadata(run.key)}
            for run in world.runs.values()
        ]
        rows = await self.connection.fetch("select input_id, run_id, status from results")
        duplicates = await self.connection.fetchval("select count(*) from other_runs")
        found = compare(truth, {r["input_id"]: (r["run_id"], r["status"]) for r in rows}, duplicates)
        assert found.agrees, found.differences
        assert not await self.connection.fetchval("select count(*) from unmatched_runs")
        accounted = {row["input_id"] for row in rows}
        for chunk, inputs in world.inputs.items():
            if world.queue[chunk].state in ("submitted", "refused"):
                assert {given.input_id for given in inputs} <= accounted
        before = await world.rows()
        await self.connection.execute(EMPTY)
        world.read.clear()
        await world.catch_up()
        after = await world.rows()
        for table in TABLES:
            assert after[table] == before[table], table


def _metadata(key: Reserved) -> dict[str, Any]:
    from everyrun.extend import reserved

    return reserved.mark({"row": 1}, key)


def test_the_promises_hold_over_any_order_of_what_can_happen(database: str) -> None:
    async def connect() -> asyncpg.Connection:
        hurried = {"search_path": "everyrun", "synchronous_commit": "off"}
        connection = await asyncpg.connect(database, server_settings=hurried)
        await tables.setup_connection(connection)
        copies = "".join(f"create table dump.{table} (like {table});" for table in ALL)
        await connection.execute("create schema dump;" + copies)
        return connection

    with asyncio.Runner() as runner:
        Machine.runner = runner
        Machine.connection = runner.run(connect())
        try:
            run_state_machine_as_test(
                Machine,
                settings=settings(
                    max_examples=1500 if LONG else 40,
                    stateful_step_count=50 if LONG else 30,
                    deadline=None,
                    # Making a failure small takes minutes: make chaos does it.
                    phases=(Phase.reuse, Phase.generate, *((Phase.shrink,) if LONG else ())),
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(Machine.connection.close())
