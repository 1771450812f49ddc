"""Remember which objects and files of a source were submitted, in the transaction that submits them.

So a sync that is killed at any moment submits nothing twice and leaves nothing out: either the queue has the submission
and remembers its objects, or it has neither.
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator
from typing import Any

from everyrun.errors import Conflict
from everyrun.store.sql import beside
from everyrun.submission.intake.parse import RowGroup
from everyrun.submission.intake.rows import UnreadableRow

_sql = beside(__file__, "intake.sql")
#: Maximum number of rows in one submission of a sync. Their versions are held in memory.
MAX_ROWS = 100_000
_MAX_VERSION = 200


class SyncedMeanwhileError(Conflict):
    """Another sync of the source submitted one of the objects meanwhile, so nothing was accepted."""

    code = "SYNCED_MEANWHILE"

    def __init__(self) -> None:
        super().__init__("another sync submitted objects of this source meanwhile; list the source again")


class TooManySyncedError(Exception):
    """The upload has more than MAX_ROWS rows."""


class SyncedRows:
    """The rows of a sync: each has, beside its other fields, the version of the object and the version before.

    ``{"id": PATH, "file": {...}, "synced": {"version": "...", "was": null}}``. ``was`` is the version that was
    submitted last, as far as the caller knows, or null if there is none.
    """

    def __init__(self, source: str, workflow_id: str) -> None:
        self._source = source
        self._workflow_id = workflow_id
        self._new: tuple[array[int], list[str]] = (array("i"), [])
        self._changed: tuple[array[int], list[str], list[str]] = (array("i"), [], [])

    async def take(self, rows: AsyncIterator[RowGroup]) -> AsyncIterator[RowGroup]:
        """Yield the rows without ``synced``, which is remembered. Raises TooManySyncedError."""
        position = 0
        async for group in rows:
            taken: RowGroup = []
            for line, value in group:
                position += 1
                if position > MAX_ROWS:
                    raise TooManySyncedError
                taken.append((line, self._take(position, value)))
            yield taken

    def _take(self, position: int, value: Any) -> Any:
        if isinstance(value, UnreadableRow):
            return value
        synced = value.pop("synced", None) if isinstance(value, dict) else None
        identifier = value.get("id") if isinstance(value, dict) else None
        known_id = identifier if isinstance(identifier, str) else None
        if not isinstance(synced, dict) or set(synced) != {"version", "was"}:
            return UnreadableRow('is required: an object like {"version": "...", "was": null}', "synced", known_id)
        if known_id is None:
            return UnreadableRow("is required in a sync: it names the object", "id")
        version, was = synced["version"], synced["was"]
        if not _is_version(version) or not (was is None or _is_version(was)):
            return UnreadableRow(f"must have 1 to {_MAX_VERSION} printable characters", "synced.version", known_id)
        if was is None:
            self._new[0].append(position)
            self._new[1].append(version)
        else:
            self._changed[0].append(position)
            self._changed[1].append(version)
            self._changed[2].append(was)
        return value

    async def store(self, connection: Any, submission_id: str) -> None:
        """Remember the objects of a submission that was just inserted in this transaction.

        Raises SyncedMeanwhileError if what is remembered of an object is not what the caller knew.
        """
        key = (self._source, self._workflow_id, submission_id)
        await connection.execute(_sql["lock_source"], self._source, self._workflow_id)
        await connection.execute(_sql["mark_synced"], submission_id, self._source)
        stored = 0
        if self._new[0]:
            stored += await connection.fetchval(_sql["insert_synced"], *key, list(self._new[0]), self._new[1])
        if self._changed[0]:
            positions, versions, was = self._changed
            stored += await connection.fetchval(_sql["update_synced"], *key, list(positions), versions, was)
        if stored != len(self._new[0]) + len(self._changed[0]):
            raise SyncedMeanwhileError


def _is_version(given: Any) -> bool:
    return isinstance(given, str) and 1 <= len(given) <= _MAX_VERSION and given.isprintable()
