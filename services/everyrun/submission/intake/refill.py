"""Restore the inputs that the queue lost. They come from the same upload, repeated with its Idempotency-Key.

A queue that was restored from a backup lacks what was stored after the backup. Chunks that the log knows keep their
numbers, ranges and states, so nothing is sent twice. Only the gaps between these chunks are cut into new chunks. If the
settings are those of the first upload, the new chunks are equal to the lost ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.submission.chunks import Cutter, Range, chunk_id, chunk_size
from everyrun.submission.dispatch.protocol import refilled
from everyrun.submission.dispatch.transitions import chunk_state, flag_chunks
from everyrun.submission.intake.rows import size_in_batch

_sql = beside(__file__, "intake.sql")
#: Timeout of the statements that move and count millions of inputs, in seconds. They take longer than other statements
#: are allowed to take.
_TIMEOUT = 3600.0
_NUMBER = re.compile(r"\.c(\d+)")


def gaps(known: Iterable[Range], expected: int) -> list[Range]:
    """Return the positions from 1 to ``expected`` that are in none of the known ranges, as ranges. Pure.

    The known ranges may overlap.
    """
    found, at = [], 1
    for first, last in sorted(known):
        if first > at:
            found.append((at, first - 1))
        at = max(at, last + 1)
    return [*found, (at, expected)] if at <= expected else found


def number_gaps(known: Sequence[tuple[int, Range]], cut: Iterable[Range], batches: int) -> list[tuple[int, Range]]:
    """Return the ranges that were cut from gaps, each with a chunk number. Pure.

    ``known`` contains the number and the range of each chunk that the queue has. ``batches`` is the number of chunks of
    the first upload. The ranges in a gap get the unused numbers between those of the chunks before and after the gap.
    If the settings changed since the first upload, the gap may be cut into more chunks than there are such numbers. The
    remaining ranges then get numbers above the highest one ever used.
    """
    used = {number for number, _ in known}
    after = max([batches, *used]) + 1
    numbered = []
    for first, last in cut:
        low = max((number for number, (_, end) in known if end < first), default=0)
        high = min((number for number, (start, _) in known if start > last), default=batches + 1)
        number = next((n for n in range(low + 1, high) if n not in used), after)
        after += number == after
        used.add(number)
        numbered.append((number, (first, last)))
    return numbered


def number_of(chunk: str) -> int:
    """Return the number of a chunk. A part has the number of the chunk that was cut first. Pure."""
    found = _NUMBER.search(chunk)
    return int(found[1]) if found else 0


async def refill(
    connection: Any, settings: Settings, submission: Any, copied: str, full: bytes, redacted: bytes
) -> None:
    """Restore the inputs and files that a submission lost, from the repeated upload.

    ``copied`` is the id under which the rows of the repeated upload were copied. ``submission`` is the row of the
    submission, which must be locked. The upload must have the same content; ``full`` and ``redacted`` are the hashes of
    its content. Must be called in a transaction.
    """
    submission_id = submission["submission_id"]
    await connection.execute(_sql["refill_files"], submission_id, copied, timeout=_TIMEOUT)
    await connection.execute(_sql["refill_inputs"], submission_id, copied, timeout=_TIMEOUT)
    await connection.execute(_sql["drop_copied"], copied, timeout=_TIMEOUT)
    ranges = [
        (number_of(row["chunk"]), (row["first_position"], row["last_position"]))
        for row in await connection.fetch(_sql["ranges_of"], submission_id)
    ]
    cut = []
    for gap in gaps([known for _, known in ranges], submission["expected"]):
        cut += await _cut(connection, settings, submission, gap)
    numbered = number_gaps(ranges, cut, submission["batches"])
    await connection.execute(
        _sql["insert_chunks"],
        submission_id,
        [chunk_id(submission_id, number) for number, _ in numbered],
        [first for _, (first, _) in numbered],
        [last for _, (_, last) in numbered],
    )
    without_files = await connection.fetch(_sql["lock_files_lost"], submission_id)
    after = [refilled(chunk_state(row)) for row in without_files]
    chunks = [row["chunk"] for row in without_files]
    columns = (chunks, [chunk.state for chunk in after], [chunk.reason for chunk in after])
    await connection.execute(_sql["refill_chunks"], *columns)
    # The lost inputs may have been cancelled before.
    await flag_chunks(connection, [submission_id], settings)
    await connection.execute(_sql["mark_refilled"], submission_id, full, redacted)


async def _cut(connection: Any, settings: Settings, submission: Any, gap: Range) -> list[Range]:
    submission_id, own = submission["submission_id"], submission["max_open_inputs"] or 0
    max_inputs = chunk_size(settings.chunk_max_inputs, settings.max_open_inputs, own)
    cutter = Cutter(max_inputs, settings.chunk_max_bytes)
    async for row in connection.cursor(_sql["sizes_of"], submission_id, *gap, prefetch=5000):
        cutter.add(size_in_batch(row["content"], len(submission_id), row["external_id"]))
    return [(first + gap[0] - 1, last + gap[0] - 1) for first, last in cutter.finish()]
