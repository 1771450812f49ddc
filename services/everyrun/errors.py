"""Define the base class of the errors that callers catch, and the four kinds of such errors.

The kind of an error decides the exit code of the command line (:mod:`everyrun.cli.exits`) and the status of an HTTP
response (:mod:`everyrun.http`). An error that is always caught in its own package need not derive from a class here.
"""
# ruff: noqa: N818

from __future__ import annotations

from typing import Any


class EveryrunError(Exception):
    """Something cannot be done. The text says why, for a person to read, and contains no secret."""

    #: The error code in the body of an HTTP response.
    code: str = "ERROR"

    def details(self) -> dict[str, Any]:
        """Return the fields that the body of an HTTP response has in addition to ``code`` and ``message``."""
        return {}


class Unavailable(EveryrunError):
    """Something that is needed is down, busy or not ready. The same request can succeed later."""

    code = "UNAVAILABLE"
    #: Seconds after which the caller should try again.
    retry_after: int = 1


class NotFound(EveryrunError):
    """The request names something that does not exist."""

    code = "NOT_FOUND"


class Conflict(EveryrunError):
    """The request contradicts something that already exists or is already decided."""

    code = "CONFLICT"


class Invalid(EveryrunError):
    """The request, a setting or a file is wrong. The text says where, and what to do."""

    code = "INVALID_REQUEST"
