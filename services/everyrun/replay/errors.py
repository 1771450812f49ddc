"""The errors that rebuilds, audits, archives and replays raise: each message names the cause and the next step."""

from __future__ import annotations

from everyrun.errors import Conflict, EveryrunError, Invalid, NotFound


class ReplayError(EveryrunError):
    """The command or job cannot be done; retrying it unchanged does not help."""


class RebuildError(ReplayError):
    """Tables cannot be rebuilt, compared or swapped."""


class LogPositionError(ReplayError, Invalid, ValueError):
    """The text names no position of the log, or the log does not reach it."""


class SelectionError(ReplayError, Invalid, ValueError):
    """The selection names a topic or a partition that does not exist."""


class TargetError(ReplayError, Conflict):
    """The target of a replay refused an event. All events before it were delivered."""


class ArchiveError(ReplayError):
    """The archive cannot be written or read."""


class NoArchiveError(ArchiveError, NotFound):
    """The folder or bucket holds no archive."""
