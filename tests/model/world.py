"""A model of dispatch: the real ``step`` and ``merge_logged`` in a world where everything can go wrong.

The world has one input, in its chunk and, after a cut, in a part. Chunks share only the workers, so what is true of
one chunk is true of many. In every state of the world any of these moves may be next, and the search tries all:

- a worker claims the chunk, announces it, checks its claim, or calls. After each of these it may be killed (kill -9),
  or delayed beyond its deadline (SIGSTOP);
- Extend accepts the batch or not, and answers truly, unclearly, or not at all. Or it refuses it, so that it is cut;
- a run becomes visible, by a webhook or in a list: after its batch was accepted, at any later time;
- the resolver steps the chunk: it revokes a claim, or finds an unannounced attempt, a lost worker, evidence, or that
  the window passed. It may be killed between any two steps;
- a person adopts, resends or discards the chunk, or cancels its inputs, whatever the chunk's state;
- the queue's database is replaced by an older copy, and later recovered from the log.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from everyrun.log import events
from everyrun.submission.dispatch.classify import Accepted, InDoubt, Refused, Returned, Unclear
from everyrun.submission.dispatch.protocol import (
    FILES_LOST_IN_DOUBT,
    FILES_LOST_UNSENT,
    Adopted,
    Answered,
    Cancelled,
    CancelRequested,
    ChunkState,
    Claimed,
    ClaimRevoked,
    Discarded,
    EvidenceFound,
    Expired,
    NeverAnnounced,
    NotPossibleError,
    Resent,
    Step,
    Trigger,
    Unannounced,
    WindowPassed,
    WorkerLost,
    refilled,
)
from everyrun.submission.recovery.chunk_recovery import LoggedChunk, read_chunks

Stepper = Callable[[ChunkState, Trigger], Step]
TakeOver = Callable[[ChunkState, LoggedChunk], ChunkState]

TAKEN = frozenset({"batch-submitted", "doubt-adopted"})
ORDER = "cancellation-requested"
#: The chunk, and the part of it that has the input which the world follows.
CHUNK, PART = "c", "c-1"
PARTS = [events.Part(PART, 1, 1), events.Part("c-2", 2, 2)]


class Bounds(NamedTuple):
    """The limits of the search. ``honest``: a list shows every run before the window is over.

    ``size``: the number of inputs of the chunk; only one of several can be cut. ``lies``: Extend may refuse a batch
    that it accepted.
    """

    attempts: int = 2
    resends: int = 1
    restores: int = 1
    decisions: int = 1
    kills: int = 1
    honest: bool = False
    size: int = 1
    lies: bool = False
    cancels: int = 0
    #: A restored database does not have the chunk at all: it is put back from the log, which does not show its files.
    loses: bool = False


class Call(NamedTuple):
    """An attempt of a chunk."""

    chunk: str
    attempt: int


class Said(NamedTuple):
    """An event in the log."""

    kind: str
    call: Call
    resends: int = 0


class Worker(NamedTuple):
    """A worker with an attempt: its last action, the answer that it got, and its copy of the database."""

    call: Call
    phase: str
    outcome: object
    incarnation: int


class Pending(NamedTuple):
    """A step under the lock of the row: published or not, and not stored yet. ``worker`` is None for the resolver."""

    chunk: str
    said: bool
    events: tuple[Said, ...]
    after: ChunkState
    worker: Worker | None
    cut: bool


Queue = tuple[tuple[str, ChunkState], ...]


class World(NamedTuple):
    """The state of everything."""

    queue: Queue = ((CHUNK, ChunkState("waiting")),)
    log: frozenset[Said] = frozenset()
    workers: frozenset[Worker] = frozenset()
    pending: Pending | None = None
    accepted: frozenset[Call] = frozenset()
    visible: frozenset[Call] = frozenset()
    overdue: frozenset[Call] = frozenset()
    #: Calls whose batch-requested the log did not have when the resolver read it after their claim was gone.
    absent: frozenset[Call] = frozenset()
    dump: Queue | None = None
    incarnation: int = 0
    level: bool = True
    #: Something was said and, for now, not kept.
    torn: bool = False
    decided: int = 0
    killed: int = 0
    cancels: int = 0

    def chunk(self, name: str) -> ChunkState | None:
        """Return the chunk in the queue."""
        return dict(self.queue).get(name)

    def with_chunk(self, name: str, state: ChunkState) -> World:
        """Return the world with this chunk in the queue."""
        return self._replace(queue=tuple(sorted({**dict(self.queue), name: state}.items())))


class Broken(NamedTuple):
    """A broken promise, and the moves that broke it."""

    promise: str
    path: tuple[str, ...]


#: Events that only a queue which forgot them can learn from.
_ONLY_FOR_A_RESTORE = frozenset({"batch-requested", "batch-returned", "batch-in-doubt"})

#: What becomes of a call: whether Extend takes the batch, and what it answers. The first ones suffice for a restore.
_ANSWERS: tuple[tuple[bool, object], ...] = (
    (True, "taken"),
    (True, InDoubt("no answer")),
    (False, InDoubt("no answer")),
    (False, Refused(400, "INVALID", "no")),
    (False, Returned("429")),
    (True, Unclear("no batchId")),
)
_A_LIE = (True, Refused(400, "INVALID", "no"))


def batch(call: Call) -> str:
    """Return the batchId that Extend gives an attempt."""
    return f"batch_{call.chunk}_{call.attempt}"


def _taken(log: frozenset[Said]) -> frozenset[Call]:
    return frozenset(said.call for said in log if said.kind in TAKEN)


def _is_cancelled(log: frozenset[Said]) -> bool:
    return any(said.kind == ORDER for said in log)


def _is_cut(log: frozenset[Said]) -> bool:
    return any(said.kind == "batch-cut" for said in log)


@lru_cache(maxsize=1 << 14)
def logged(log: frozenset[Said]) -> dict[str, LoggedChunk]:
    """Return what the real reader finds in the log."""
    by_tag = {kind.__struct_config__.tag: kind for kind in events.TOPICS["batches"]}
    found = []
    for said in sorted(log):
        kind = by_tag[said.kind]
        given = {**said.call._asdict(), "resends": said.resends, "batch_id": batch(said.call), "parts": PARTS}
        fields = {f.name: None for f in msgspec.structs.fields(kind)}
        found.append(kind(**{name: given.get(name) for name in fields}))
    return read_chunks(found)


class Model:
    """The moves of the world, and the promises.

    Some rules are outside the real functions. Each can be left out, to see that a promise breaks without it.
    ``checks``: the worker checks its claim before it calls. ``reads``: the resolver reads the log before it concludes
    that the log has no announcement. ``makes_parts``: recovery inserts the parts of a chunk that the log says was cut.
    ``flags``: recovery flags the chunks that the log says were cancelled.
    """

    def __init__(
        self,
        step: Stepper,
        merge_logged: TakeOver,
        bounds: Bounds,
        *,
        checks: bool = True,
        reads: bool = True,
        makes_parts: bool = True,
        flags: bool = True,
    ) -> None:
        self.step = step
        self.merge_logged = merge_logged
        self.bounds = bounds
        self.checks = checks
        self.reads = reads
        self.makes_parts = makes_parts
        self.flags = flags

    def search(self) -> tuple[int, Broken | None]:
        """Search every reachable world, nearest first; return their number, and the first broken promise."""
        # Nothing here is garbage, so collections would only traverse all worlds repeatedly.
        gc.disable()
        try:
            return self._search()
        finally:
            gc.enable()

    def _search(self) -> tuple[int, Broken | None]:
        first = World().with_chunk(CHUNK, ChunkState("waiting", size=self.bounds.size))
        came: dict[World, tuple[World | None, str]] = {first: (None, "")}
        ahead = deque([first])
        while ahead:
            world = ahead.popleft()
            for name, after, broken in self.moves(world):
                if broken is not None:
                    return len(came), Broken(broken, (*_path(came, world), name))
                after = self._normal(after)
                if after not in came:
                    came[after] = (world, name)
                    ahead.append(after)
            broken = self.unseen(world) or self.lost(world)
            if broken is not None:
                return len(came), Broken(broken, _path(came, world))
        return len(came), None

    # --- moves: (name, the world after, the promise that it breaks)

    def moves(self, w: World) -> Iterator[tuple[str, World, str | None]]:
        """Yield every possible move."""
        yield from self._worker_moves(w)
        for call in w.accepted - w.visible:
            yield f"a run of {call} is seen", w._replace(visible=w.visible | {call}), None
        if w.dump is None and self.bounds.restores:
            yield "a copy of the database is kept", w._replace(dump=w.queue), None
        if w.dump is not None and w.incarnation < self.bounds.restores:
            # The connections to the old database end with it, and their open transactions are lost.
            queue = (
                ((CHUNK, ChunkState("waiting", files_lost=True, size=self.bounds.size)),)
                if self.bounds.loses
                else w.dump
            )
            replaced = w._replace(queue=queue, pending=None, incarnation=w.incarnation + 1, level=False)
            yield "the copy replaces the database", self._kept_workers(w, replaced), None
        if w.pending is not None:
            yield from self._pending_moves(w, w.pending)
            return
        if w.log or not w.level:
            yield "the queue is brought level", self._levelled(w), None
        if w.level:
            for name, chunk in w.queue:
                yield from self._claim(w, name, chunk)
                yield from self._resolver_moves(w, name, chunk)
            yield from self._person_moves(w)
            yield from self._cancel_moves(w)
            if any(chunk.files_lost for _, chunk in w.queue):
                whole = tuple((name, _plain(refilled(chunk))) for name, chunk in w.queue)
                yield "the upload is repeated", w._replace(queue=whole), None

    def _levelled(self, w: World) -> World:
        said = logged(w.log)
        queue = dict(w.queue)
        if self.makes_parts and any(one.parts for one in said.values()):
            queue.setdefault(PART, ChunkState("waiting"))
        for name, chunk in queue.items():
            if name in said:
                queue[name] = _plain(self.merge_logged(chunk, said[name]))
        if self.flags and _is_cancelled(w.log):
            queue = {name: self._flagged(chunk) for name, chunk in queue.items()}
        return w._replace(queue=tuple(sorted(queue.items())), level=True, torn=False)

    def _flagged(self, chunk: ChunkState) -> ChunkState:
        try:
            return _plain(self.step(chunk, CancelRequested("can")).after)
        except NotPossibleError:
            return chunk

    def _kept_workers(self, w: World, replaced: World) -> World:
        """Return a worker whose step was lost with the database: it still reports its answer."""
        if w.pending is not None and w.pending.worker is not None:
            return replaced._replace(workers=replaced.workers | {w.pending.worker})
        return replaced

    def _claim(self, w: World, name: str, chunk: ChunkState) -> Iterator[tuple[str, World, str | None]]:
        if chunk.state != "waiting" or chunk.attempt >= self.bounds.attempts:
            return
        try:
            after = _plain(self.step(chunk, Claimed()).after)
        except NotPossibleError:
            return
        worker = Worker(Call(name, after.attempt), "claimed", None, w.incarnation)
        broken = "files that are not whole are not sent" if chunk.files_lost else None
        parent = w.chunk(CHUNK)
        assert parent is not None
        if _is_cancelled(w.log) and not w.torn:
            broken = "what is cancelled is not sent again"
        if _taken(w.log) and not w.torn and not self.bounds.lies:
            broken = "a chunk that is known to have been taken is not sent again"
        elif (name == CHUNK and w.chunk(PART)) or (name == PART and parent.state != "cut"):
            broken = "no input is sent in two live chunks"
        elif name == CHUNK and _is_cut(w.log) and not w.torn:
            broken = "a chunk that is known to have been cut is not sent again"
        yield f"a worker claims {name}", w.with_chunk(name, after)._replace(workers=w.workers | {worker}), broken

    def _worker_moves(self, w: World) -> Iterator[tuple[str, World, str | None]]:
        for worker in w.workers:
            others = w.workers - {worker}
            call = worker.call
            name = f"the worker of {call.chunk}/{call.attempt}"

            def become(
                phase: str, worker: Worker = worker, others: frozenset[Worker] = others, **more: object
            ) -> World:
                changed = worker._replace(phase=phase, **more)  # type: ignore[arg-type]
                return w._replace(workers=others | {changed})

            if w.killed < self.bounds.kills:
                yield f"{name} is killed", w._replace(workers=others, killed=w.killed + 1), None
            requested = Said("batch-requested", call)
            if worker.phase == "claimed":
                yield f"{name} announces it", become("announced")._replace(log=w.log | {requested}), None
                refused = become("answered", outcome=Unannounced())
                yield f"{name} is not from_extend", refused, None
                yield f"{name} is heard of and does not say so", refused._replace(log=w.log | {requested}), None
            elif worker.phase == "announced":
                if not self.checks or self._has_claim(w, worker):
                    yield f"{name} sees its claim", become("checked"), None
                else:
                    yield f"{name} finds its claim gone", become("answered", outcome=Expired()), None
            elif worker.phase == "checked":
                if call in w.overdue:
                    yield f"{name} is too late", become("answered", outcome=Expired()), None
                else:
                    yield from self._calls(w, worker, become)
            elif worker.phase == "answered":
                yield from self._answers(w, worker, others)

    def _has_claim(self, w: World, worker: Worker) -> bool:
        chunk = w.chunk(worker.call.chunk)
        present = chunk is not None and chunk.state == "sending" and chunk.attempt == worker.call.attempt
        return bool(present and chunk and chunk.claimed and w.incarnation == worker.incarnation and w.level)

    def _calls(self, w: World, worker: Worker, become: Callable[..., World]) -> Iterator[tuple[str, World, str | None]]:
        given_up = {said.call for said in w.log if said.kind == "doubt-resent"}
        answers = _ANSWERS[: 4 if self.bounds.restores else None] + ((_A_LIE,) if self.bounds.lies else ())
        for takes, outcome in answers:
            answer = Accepted(batch(worker.call)) if outcome == "taken" else outcome
            after = become("answered", outcome=answer)
            broken = None
            if takes:
                after = after._replace(accepted=w.accepted | {worker.call})
                if self.bounds.lies:
                    pass
                elif w.accepted - given_up:
                    broken = "nothing is sent again before an attempt that was taken is given up"
                elif w.accepted and self.bounds.honest and not w.decided:
                    broken = "nothing is sent twice while a list shows every run within the window"
            kind = type(answer).__name__
            yield f"{worker.call} is {'taken' if takes else 'not taken'}: {kind}", after, broken

    def _answers(self, w: World, worker: Worker, others: frozenset[Worker]) -> Iterator[tuple[str, World, str | None]]:
        trigger = Answered(worker.call.attempt, worker.outcome)  # type: ignore[arg-type]
        name = f"the worker of {worker.call.chunk}/{worker.call.attempt} settles"
        published = Said("batch-submitted", worker.call)
        if isinstance(worker.outcome, Accepted) and published not in w.log:
            yield f"{name}: the log first", w._replace(log=w.log | {published}, torn=True), None
            return
        if w.pending is not None:
            return
        chunk = w.chunk(worker.call.chunk)
        if chunk is None or (w.incarnation != worker.incarnation and not isinstance(worker.outcome, Accepted)):
            yield f"{name}: in another database", w._replace(workers=others), None
            return
        yield from self._take(w._replace(workers=others), name, worker.call.chunk, trigger, worker)

    def _resolver_moves(self, w: World, name: str, chunk: ChunkState) -> Iterator[tuple[str, World, str | None]]:
        present = Call(name, chunk.attempt)
        if chunk.state == "sending":
            if chunk.claimed and not chunk.announced:
                yield from self._take(w, "its claim is taken away", name, ClaimRevoked(chunk.attempt), None)
            if present in w.absent:
                yield from self._take(w, "it was never announced", name, NeverAnnounced(chunk.attempt), None)
            elif not chunk.claimed and not chunk.announced:
                level = self._levelled(w) if self.reads else w
                now = level.chunk(name)
                if now is not None and now.state == "sending" and not now.announced:
                    yield "the log has nothing of it", level._replace(absent=w.absent | {present}), None
            overdue = w._replace(overdue=w.overdue | {present})
            yield from self._take(overdue, "its worker is taken for lost", name, WorkerLost(chunk.attempt), None)
        fresh = sorted(call for call in w.visible - _taken(w.log) if call.chunk == name)
        for call in fresh:
            called = {worker.call for worker in w.workers}
            if chunk.state == "sending" and call == present and call in called:
                continue
            evidence = EvidenceFound(call.attempt, batch(call), "run")
            yield from self._take(w, f"evidence of {call}", name, evidence, None)
        said = logged(w.log).get(name)
        behind = said is not None and _plain(self.merge_logged(chunk, said)) != chunk
        lags = self.bounds.honest and w.accepted - w.visible
        if chunk.state == "in_doubt" and not fresh and not behind and not lags:
            passed = WindowPassed(chunk.attempt, self.bounds.resends)
            yield from self._take(w, "the window has passed", name, passed, None)

    def _person_moves(self, w: World) -> Iterator[tuple[str, World, str | None]]:
        if w.decided >= self.bounds.decisions:
            return
        decided = w._replace(decided=w.decided + 1)
        for call in w.accepted:
            adopted = Adopted(call.attempt, batch(call), "run", "ann", "seen")
            if w.chunk(call.chunk) is not None:
                yield from self._take(decided, f"a person adopts {call}", call.chunk, adopted, None)
        for name, chunk in w.queue:
            if chunk.state in ("in_doubt", "held"):
                yield from self._take(decided, "a person sends it again", name, Resent("ann", "go on"), None)
                yield from self._take(decided, "a person discards it", name, Discarded("ann", "enough"), None)

    def _cancel_moves(self, w: World) -> Iterator[tuple[str, World, str | None]]:
        """A person cancels all inputs, and the job cancels the chunks that wait."""
        if w.cancels < self.bounds.cancels and not _is_cancelled(w.log):
            ordered = w._replace(cancels=w.cancels + 1, log=w.log | {Said(ORDER, Call(CHUNK, 0))})
            yield "a cancellation is said, and not kept", ordered._replace(torn=True), None
            queue = tuple((name, self._flagged(chunk)) for name, chunk in w.queue)
            yield "a cancellation is said and kept", ordered._replace(queue=queue), None
        for name, chunk in w.queue:
            if chunk.state == "waiting" and chunk.cancelling is not None:
                yield from self._take(w, f"{name} is cancelled", name, Cancelled(), None)

    def _take(
        self, w: World, name: str, at: str, trigger: Trigger, worker: Worker | None
    ) -> Iterator[tuple[str, World, str | None]]:
        """Step under the lock of the row. An impossible trigger changes nothing."""
        chunk = w.chunk(at)
        assert chunk is not None
        try:
            done = self.step(chunk, trigger)
        except NotPossibleError:
            if worker is not None:
                yield f"{name}: changes nothing", w, None
            return
        say = tuple(
            Said(s.kind, Call(at, s.attempt), done.after.resends if s.kind == "doubt-resent" else 0)
            for s in done.events
        )
        pending = Pending(at, False, say, _plain(done.after), worker, bool(done.parts))
        yield name, w._replace(pending=pending), None

    def _pending_moves(self, w: World, pending: Pending) -> Iterator[tuple[str, World, str | None]]:
        if w.killed < self.bounds.kills:
            torn = w.torn or pending.said
            yield "killed with the row locked", w._replace(pending=None, torn=torn, killed=w.killed + 1), None
        if pending.said:
            after = w.with_chunk(pending.chunk, pending.after)._replace(pending=None)
            if pending.cut and after.chunk(PART) is None:
                after = after.with_chunk(PART, ChunkState("waiting"))
            yield "kept", after, self.accounted(w, pending.after)
            return
        after = w._replace(log=w.log | set(pending.events), pending=pending._replace(said=True))
        broken = None
        kinds = {said.kind for said in pending.events}
        if kinds & {"batch-rejected", "batch-cut"} and w.accepted and not self.bounds.lies:
            broken = "no input is refused, and no chunk cut, while an attempt may have been taken"
        if "batch-cancelled" in kinds and self.bounds.honest and w.accepted and not w.decided:
            broken = "no input is called unsent while a list shows every run within the window"
        if any(said.kind in TAKEN and said.call not in w.accepted for said in pending.events):
            broken = "nothing is called taken that was not"
        yield "said", after, broken

    def _normal(self, w: World) -> World:
        """Return the world without details that no longer matter, so that equivalent worlds are equal."""
        calls_ahead = {worker.call for worker in w.workers if worker.phase != "answered"}
        open_claims = {Call(name, chunk.attempt) for name, chunk in w.queue if chunk.state == "sending"}
        log = w.log
        if not self.bounds.restores:
            open_calls = {Said("batch-requested", call) for call in open_claims}
            log = frozenset(said for said in log if said.kind not in _ONLY_FOR_A_RESTORE or said in open_calls)
        return w._replace(
            log=log,
            overdue=w.overdue & calls_ahead,
            absent=w.absent if self.bounds.restores else w.absent & open_claims,
            torn=w.torn and (bool(_taken(log)) or _is_cut(log) or _is_cancelled(log)),
        )

    # --- promises of a state

    def accounted(self, w: World, chunk: ChunkState) -> str | None:
        """No input is dropped: a finished chunk has an event with the outcome of its inputs."""
        kinds = {said.kind for said in w.log}
        if chunk.state == "submitted" and not kinds & TAKEN:
            return "no input is dropped: what is sent is in the log"
        if chunk.state == "refused" and not kinds & {"batch-rejected", "doubt-discarded"}:
            return "no input is dropped: what is refused is in the log"
        if chunk.state == "cancelled" and "batch-cancelled" not in kinds:
            return "no input is dropped: what is cancelled is in the log"
        if chunk.state == "cut" and not _is_cut(w.log):
            return "no input is dropped: what is cut is in the log"
        return None

    def lost(self, w: World) -> str | None:
        """No input is lost: without moves in progress, the input of a cut chunk is in one of its parts."""
        if w.pending is not None or not w.level:
            return None
        parent = w.chunk(CHUNK)
        if parent is not None and parent.state == "cut" and w.chunk(PART) is None:
            return "no input is lost when its chunk is cut"
        return None

    def unseen(self, w: World) -> str | None:
        """No batch is missed: without moves in progress, evidence that is not in the log can still reach it."""
        if w.pending is not None or w.workers or not w.level:
            return None
        for call in sorted(w.accepted - _taken(w.log)):
            chunk = w.chunk(call.chunk)
            if chunk is None:
                return f"no batch goes unseen: {call}"
            if chunk.state == "sending":
                continue
            try:
                done = self.step(chunk, EvidenceFound(call.attempt, batch(call), "run"))
            except NotPossibleError:
                return f"no batch goes unseen: {call}"
            if not any(say.kind in TAKEN and say.attempt == call.attempt for say in done.events):
                return f"no batch goes unseen: {call}"
        return None


def _plain(chunk: ChunkState) -> ChunkState:
    """Return the state without its reason, which matters only after lost files are restored."""
    return chunk if chunk.reason in (FILES_LOST_UNSENT, FILES_LOST_IN_DOUBT) else replace(chunk, reason=None)


def _path(came: dict[World, tuple[World | None, str]], world: World) -> tuple[str, ...]:
    path = []
    at: World | None = world
    while at is not None:
        at, name = came[at]
        path.append(name)
    return tuple(reversed(path[:-1]))
