"""The base of the errors that callers catch, and its four kinds.

The command line takes its exit code from the kind (:mod:`everyrun.cli.exits`), the HTTP APIs take their status from it
(:mod:`everyrun.http`). An error that never leaves its package needs no base from here.
"""
# ruff: noqa: N818

from __future__ import annotations

from typing import Any


class EveryrunError(Exception):
    """Report why something cannot be done. The text is written for a person and holds no secret."""

    #: The error code in the body of an HTTP response.
    code: str = "ERROR"

    def details(self) -> dict[str, Any]:
        """Return what the body of an HTTP response holds beside ``code`` and ``message``."""
        return {}


class Unavailable(EveryrunError):
    """Something that is needed is down, busy or not ready; the same request can succeed later."""

    code = "UNAVAILABLE"
    #: Seconds after which to try again.
    retry_after: int = 1


class NotFound(EveryrunError):
    """The thing that was named does not exist."""

    code = "NOT_FOUND"


class Conflict(EveryrunError):
    """The request contradicts what exists already."""

    code = "CONFLICT"


class Invalid(EveryrunError):
    """The request, a setting or a file is wrong; the text names the place and the remedy."""

    code = "INVALID_REQUEST"
