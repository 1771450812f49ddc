"""A model of dispatch: the dispatcher's own ``step`` and ``take_over`` in a world that does its worst.

One chunk: chunks share nothing but the workers, so what holds of one holds of many. In every state of the world any of
the following may be next, and the search tries them all:

- a worker claims the chunk, announces it, checks its claim, calls; each of these may be its last act (kill -9), or be
  put off beyond its deadline (SIGSTOP);
- Extend takes the batch or not, and answers truly, unclearly, or not at all;
- a run becomes visible: a webhook, or a list; never sooner than its batch was taken, and as late as it likes;
- the resolver steps the chunk: a lost worker, evidence, a window that passed; it may die between saying and keeping;
- a person adopts, sends again, discards;
- the queue's database is replaced by an older copy of itself, and later brought level with the log.
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
from everyrun.submission.classify import InDoubt, Rejected, Returned, Taken, Unclear
from everyrun.submission.protocol import (
    Adopted,
    Answered,
    ChunkState,
    Claimed,
    Discarded,
    Evidence,
    Expired,
    Happening,
    Lost,
    NotPossibleError,
    Resent,
    Step,
    Unannounced,
    WindowPassed,
)
from everyrun.submission.takeover import Logged, read_chunks

Stepper = Callable[[ChunkState, Happening], Step]
TakeOver = Callable[[ChunkState, Logged], ChunkState]

TAKEN = frozenset({"batch-submitted", "doubt-adopted"})


class Bounds(NamedTuple):
    """How far the search goes. ``honest``: a list shows every run before the window is over."""

    attempts: int = 2
    resends: int = 1
    restores: int = 1
    decisions: int = 1
    kills: int = 1
    honest: bool = False


class Said(NamedTuple):
    """An event in the log."""

    kind: str
    attempt: int
    resends: int = 0


class Worker(NamedTuple):
    """A worker with an attempt: what it has done last, what it was told, and in which copy of the database."""

    attempt: int
    phase: str
    outcome: object
    incarnation: int


class Pending(NamedTuple):
    """A step under the lock of the row: said or not, not kept yet; ``worker`` is whose it is, None for the resolver."""

    said: bool
    say: tuple[Said, ...]
    after: ChunkState
    worker: Worker | None


class World(NamedTuple):
    """Everything there is."""

    chunk: ChunkState = ChunkState("waiting")
    log: frozenset[Said] = frozenset()
    workers: frozenset[Worker] = frozenset()
    pending: Pending | None = None
    accepted: frozenset[int] = frozenset()
    visible: frozenset[int] = frozenset()
    overdue: frozenset[int] = frozenset()
    dump: ChunkState | None = None
    incarnation: int = 0
    level: bool = True
    #: Something was said and, for now, not kept.
    torn: bool = False
    decided: int = 0
    killed: int = 0


class Broken(NamedTuple):
    """A promise that does not hold, and how the world came to break it."""

    promise: str
    path: tuple[str, ...]


#: Events that only a queue which forgot them can learn from.
_ONLY_FOR_A_RESTORE = frozenset({"batch-requested", "batch-returned", "batch-in-doubt"})

#: What becomes of a call: whether Extend takes the batch, and what it answers. The first ones suffice for a restore.
_ANSWERS: tuple[tuple[bool, object], ...] = (
    (True, "taken"),
    (True, InDoubt("no answer")),
    (False, InDoubt("no answer")),
    (False, Rejected(400, "INVALID", "no")),
    (False, Returned("429")),
    (True, Unclear("no batchId")),
)


def batch(attempt: int) -> str:
    """The batchId that Extend gives an attempt."""
    return f"batch_{attempt}"


def _taken(log: frozenset[Said]) -> frozenset[int]:
    return frozenset(said.attempt for said in log if said.kind in TAKEN)


@lru_cache(maxsize=1 << 14)
def logged(log: frozenset[Said]) -> Logged | None:
    """What the real reader makes of the log."""
    by_tag = {kind.__struct_config__.tag: kind for kind in events.TOPICS["batches"]}
    found = []
    for said in sorted(log):
        kind = by_tag[said.kind]
        given = {"chunk": "c", "attempt": said.attempt, "resends": said.resends, "batch_id": batch(said.attempt)}
        fields = {f.name: None for f in msgspec.structs.fields(kind)}
        found.append(kind(**{name: given.get(name) for name in fields}))
    return read_chunks(found).get("c")


class Model:
    """The moves of the world, and the promises."""

    def __init__(self, step: Stepper, take_over: TakeOver, bounds: Bounds) -> None:
        self.step = step
        self.take_over = take_over
        self.bounds = bounds

    def search(self) -> tuple[int, Broken | None]:
        """Every reachable world, the nearest first: how many there are, and the first broken promise."""
        # Nothing here is garbage: collecting would only walk through all worlds again and again.
        gc.disable()
        try:
            return self._search()
        finally:
            gc.enable()

    def _search(self) -> tuple[int, Broken | None]:
        first = World()
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
            broken = self.unseen(world)
            if broken is not None:
                return len(came), Broken(broken, _path(came, world))
        return len(came), None

    # --- moves: (name, the world after, the promise that it breaks)

    def moves(self, w: World) -> Iterator[tuple[str, World, str | None]]:
        """Everything that may be next."""
        yield from self._worker_moves(w)
        for attempt in w.accepted - w.visible:
            yield f"a run of attempt {attempt} is seen", w._replace(visible=w.visible | {attempt}), None
        if w.dump is None and self.bounds.restores:
            yield "a copy of the database is kept", w._replace(dump=w.chunk), None
        if w.dump is not None and w.incarnation < self.bounds.restores:
            # Connections to the old database end with it, and what they had not committed.
            replaced = w._replace(chunk=w.dump, pending=None, incarnation=w.incarnation + 1, level=False)
            yield "the copy replaces the database", self._kept_workers(w, replaced), None
        if w.pending is not None:
            yield from self._pending_moves(w, w.pending)
            return
        said = logged(w.log)
        if said is not None:
            after = self.take_over(w.chunk, said)
            yield "the queue is brought level", w._replace(chunk=_plain(after), level=True, torn=False), None
        elif not w.level:
            yield "the queue is brought level", w._replace(level=True, torn=False), None
        if w.level:
            yield from self._claim(w)
            yield from self._resolver_moves(w)
            yield from self._person_moves(w)

    def _kept_workers(self, w: World, replaced: World) -> World:
        """A worker whose step was lost with the database has still its answer to give."""
        if w.pending is not None and w.pending.worker is not None:
            return replaced._replace(workers=replaced.workers | {w.pending.worker})
        return replaced

    def _claim(self, w: World) -> Iterator[tuple[str, World, str | None]]:
        if w.chunk.state != "waiting" or w.chunk.attempt >= self.bounds.attempts:
            return
        after = _plain(self.step(w.chunk, Claimed()).after)
        worker = Worker(after.attempt, "claimed", None, w.incarnation)
        broken = None
        if _taken(w.log) and not w.torn:
            broken = "a chunk that is known to have been taken is not sent again"
        yield "a worker claims it", w._replace(chunk=after, workers=w.workers | {worker}), broken

    def _worker_moves(self, w: World) -> Iterator[tuple[str, World, str | None]]:
        for worker in w.workers:
            others = w.workers - {worker}
            name = f"the worker of attempt {worker.attempt}"

            def become(
                phase: str, worker: Worker = worker, others: frozenset[Worker] = others, **more: object
            ) -> World:
                changed = worker._replace(phase=phase, **more)  # type: ignore[arg-type]
                return w._replace(workers=others | {changed})

            if w.killed < self.bounds.kills:
                yield f"{name} is killed", w._replace(workers=others, killed=w.killed + 1), None
            requested = Said("batch-requested", worker.attempt)
            if worker.phase == "claimed":
                # Where the database is not replaced, the claim is there for sure.
                announced = become("announced" if self.bounds.restores else "checked")
                yield f"{name} announces it", announced._replace(log=w.log | {requested}), None
                refused = become("answered", outcome=Unannounced())
                yield f"{name} is not heard", refused, None
                yield f"{name} is heard and not told so", refused._replace(log=w.log | {requested}), None
            elif worker.phase == "announced":
                mine = ("sending", worker.attempt, worker.incarnation)
                if (w.chunk.state, w.chunk.attempt, w.incarnation) == mine and w.level:
                    yield f"{name} sees its claim", become("checked"), None
                else:
                    yield f"{name} finds its claim gone", w._replace(workers=others), None
            elif worker.phase == "checked":
                if worker.attempt in w.overdue:
                    yield f"{name} is too late", become("answered", outcome=Expired()), None
                else:
                    yield from self._calls(w, worker, become)
            elif worker.phase == "answered":
                yield from self._answers(w, worker, others)

    def _calls(self, w: World, worker: Worker, become: Callable[..., World]) -> Iterator[tuple[str, World, str | None]]:
        given_up = {said.attempt for said in w.log if said.kind == "doubt-resent"}
        for takes, outcome in _ANSWERS[: 4 if self.bounds.restores else None]:
            answer = Taken(batch(worker.attempt)) if outcome == "taken" else outcome
            after = become("answered", outcome=answer)
            broken = None
            if takes:
                after = after._replace(accepted=w.accepted | {worker.attempt})
                if w.accepted - given_up:
                    broken = "nothing is sent again before an attempt that was taken is given up"
                elif w.accepted and self.bounds.honest and not w.decided:
                    broken = "nothing is sent twice while a list shows every run within the window"
            kind = type(answer).__name__
            yield f"attempt {worker.attempt} is {'taken' if takes else 'not taken'}: {kind}", after, broken

    def _answers(self, w: World, worker: Worker, others: frozenset[Worker]) -> Iterator[tuple[str, World, str | None]]:
        happening = Answered(worker.attempt, worker.outcome)  # type: ignore[arg-type]
        name = f"the worker of attempt {worker.attempt} settles"
        told = Said("batch-submitted", worker.attempt)
        if isinstance(worker.outcome, Taken) and told not in w.log:
            yield f"{name}: the log first", w._replace(log=w.log | {told}, torn=True), None
            return
        if w.pending is not None:
            return
        if w.incarnation != worker.incarnation and not isinstance(worker.outcome, Taken):
            yield f"{name}: in another database", w._replace(workers=others), None
            return
        yield from self._take(w._replace(workers=others), name, happening, worker)

    def _resolver_moves(self, w: World) -> Iterator[tuple[str, World, str | None]]:
        chunk = w.chunk
        if chunk.state == "sending":
            overdue = w._replace(overdue=w.overdue | {chunk.attempt})
            yield from self._take(overdue, "its worker is taken for lost", Lost(chunk.attempt), None)
        fresh = sorted(w.visible - _taken(w.log))
        for attempt in fresh:
            called = {worker.attempt for worker in w.workers}
            if chunk.state == "sending" and attempt == chunk.attempt and attempt in called:
                continue
            evidence = Evidence(attempt, batch(attempt), "run")
            yield from self._take(w, f"evidence of attempt {attempt}", evidence, None)
        said = logged(w.log)
        behind = said is not None and _plain(self.take_over(chunk, said)) != chunk
        lags = self.bounds.honest and w.accepted - w.visible
        if chunk.state == "in_doubt" and not fresh and not behind and not lags:
            passed = WindowPassed(chunk.attempt, self.bounds.resends)
            yield from self._take(w, "the window has passed", passed, None)

    def _person_moves(self, w: World) -> Iterator[tuple[str, World, str | None]]:
        if w.decided >= self.bounds.decisions:
            return
        decided = w._replace(decided=w.decided + 1)
        for attempt in w.accepted:
            adopted = Adopted(attempt, batch(attempt), "run", "ann", "seen")
            yield from self._take(decided, f"a person adopts attempt {attempt}", adopted, None)
        if w.chunk.state in ("in_doubt", "held"):
            yield from self._take(decided, "a person sends it again", Resent("ann", "go on"), None)
            yield from self._take(decided, "a person discards it", Discarded("ann", "enough"), None)

    def _take(
        self, w: World, name: str, happening: Happening, worker: Worker | None
    ) -> Iterator[tuple[str, World, str | None]]:
        """Step under the lock of the row; what is impossible changes nothing."""
        try:
            done = self.step(w.chunk, happening)
        except NotPossibleError:
            if worker is not None:
                yield f"{name}: changes nothing", w, None
            return
        say = tuple(Said(s.kind, s.attempt, done.after.resends if s.kind == "doubt-resent" else 0) for s in done.say)
        yield name, w._replace(pending=Pending(False, say, _plain(done.after), worker)), None

    def _pending_moves(self, w: World, pending: Pending) -> Iterator[tuple[str, World, str | None]]:
        if w.killed < self.bounds.kills:
            torn = w.torn or pending.said
            yield "killed with the row locked", w._replace(pending=None, torn=torn, killed=w.killed + 1), None
        if pending.said:
            yield "kept", w._replace(chunk=pending.after, pending=None), self.accounted(w, pending.after)
            return
        after = w._replace(log=w.log | set(pending.say), pending=pending._replace(said=True))
        broken = None
        kinds = {said.kind for said in pending.say}
        if "batch-rejected" in kinds and w.accepted:
            broken = "no input is refused while an attempt may have been taken"
        if any(said.kind in TAKEN and said.attempt not in w.accepted for said in pending.say):
            broken = "nothing is called taken that was not"
        yield "said", after, broken

    def _normal(self, w: World) -> World:
        """Without what can make no difference any more, so that worlds that are alike are one."""
        calls_ahead = {worker.attempt for worker in w.workers if worker.phase != "answered"}
        log = w.log
        if not self.bounds.restores:
            log = frozenset(said for said in log if said.kind not in _ONLY_FOR_A_RESTORE)
        return w._replace(log=log, overdue=w.overdue & calls_ahead, torn=w.torn and bool(_taken(log)))

    # --- promises of a state

    def accounted(self, w: World, chunk: ChunkState) -> str | None:
        """No input is dropped: a chunk that is done with has an event that says what became of its inputs."""
        kinds = {said.kind for said in w.log}
        if chunk.state == "sent" and not kinds & TAKEN:
            return "no input is dropped: what is sent is in the log"
        if chunk.state == "refused" and not kinds & {"batch-rejected", "doubt-discarded"}:
            return "no input is dropped: what is refused is in the log"
        return None

    def unseen(self, w: World) -> str | None:
        """No batch goes unseen: where all is quiet, evidence that is not in the log yet can still come into it."""
        if w.pending is not None or w.workers or not w.level:
            return None
        if w.chunk.state == "sending":
            return None
        for attempt in sorted(w.accepted - _taken(w.log)):
            try:
                done = self.step(w.chunk, Evidence(attempt, batch(attempt), "run"))
            except NotPossibleError:
                return f"no batch goes unseen: attempt {attempt}"
            if not any(say.kind in TAKEN and say.attempt == attempt for say in done.say):
                return f"no batch goes unseen: attempt {attempt}"
        return None


def _plain(chunk: ChunkState) -> ChunkState:
    """Without the reason, which decides nothing."""
    return replace(chunk, reason=None)


def _path(came: dict[World, tuple[World | None, str]], world: World) -> tuple[str, ...]:
    path = []
    at: World | None = world
    while at is not None:
        at, name = came[at]
        path.append(name)
    return tuple(reversed(path[:-1]))
