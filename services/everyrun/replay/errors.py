"""The errors of rebuilds, audits, archives and replays. Each message names the cause and the next step."""

from __future__ import annotations

from everyrun.errors import Conflict, EveryrunError, Invalid, NotFound


class ReplayError(EveryrunError):
    """The command or job cannot be done. Retrying it without a change does not help."""


class RebuildError(ReplayError):
    """Tables cannot be rebuilt, compared or swapped."""


class LogPositionError(ReplayError, Invalid, ValueError):
    """The text is not a position of the log, or the log ends before this position."""


class SelectionError(ReplayError, Invalid, ValueError):
    """The selection has a topic or partition that does not exist, or its offsets cannot be parsed."""


class TargetError(ReplayError, Conflict):
    """The target of a replay cannot be used, or refused an event. All events before the refused one were delivered."""


class ArchiveError(ReplayError):
    """The archive cannot be written or read."""


class NoArchiveError(ArchiveError, NotFound):
    """The folder or bucket does not contain an archive."""
