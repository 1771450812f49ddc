"""What an answer to a batch POST, or the lack of one, means. Pure.

Only a body of Extend's own form is Extend's word (``read_problem``). The table by status is in
docs/explanation/delivery.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import httpx
import msgspec

from everyrun.extend.client import Problem, clean, read_error, read_json, read_problem, retry_after
from everyrun.redact import describe
from everyrun.submission.dispatch.cutting import named


class Taken(msgspec.Struct, frozen=True):
    """Extend took the batch."""

    batch_id: str


class Rejected(msgspec.Struct, frozen=True):
    """Extend made nothing of the call because of its inputs; ``named`` are the places of those it names, from 0."""

    status: int
    code: str
    message: str
    named: tuple[int, ...] = ()


class Returned(msgspec.Struct, frozen=True):
    """Not taken, for now: nothing was made of it.

    ``wait`` is how long Extend asked to wait, in seconds; ``limited`` is set for a 429; ``heard`` if Extend itself
    said so.
    """

    reason: str
    wait: float | None = None
    limited: bool = False
    heard: bool = False


class Blocked(msgspec.Struct, frozen=True):
    """Not accepted, and it will not be before a person acts.

    ``scope`` is what to pause: the workflow, for an error of the workflow, the key, the credits or the permission; the
    submission, for an error of the workflow version that it names, which concerns no other submission.
    """

    reason: str
    scope: Literal["workflow", "submission"] = "workflow"


class Unclear(msgspec.Struct, frozen=True):
    """Taken, by its status, but without a batchId: a person must look."""

    reason: str


class InDoubt(msgspec.Struct, frozen=True):
    """It may have been taken, or not."""

    reason: str


Verdict = Taken | Rejected | Returned | Blocked | Unclear | InDoubt

#: No whole request was sent. LocalProtocolError is our own side's: h11 refuses to write what is not HTTP, such as a
#: header with a line break. A batch call's body is whole when it begins, so nothing of it can be refused later.
_NOT_SENT = (
    *(httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.ProxyError),
    httpx.LocalProtocolError,
)

#: Statuses that refuse a request before anything is made of it, whoever answers (RFC 9110, 6585, 7725).
_NOTHING_MADE = frozenset(
    {400, 401, 402, 403, 404, 405, 406, 407, 410, 411, 413, 414, 415, 417, 421, 422, 426, 428, 429, 431, 451}
)
#: Statuses that can follow a request that was, or is still being, worked on.
_MAY_BE_MADE = frozenset({408, 409, 425, 499})

#: Statuses of Extend's own that can be about the inputs. Others are about the workflow or the account.
_OF_INPUTS = frozenset({400, 413, 422})
_CODES_OF_ACCOUNT = frozenset({"UNAUTHORIZED", "FORBIDDEN", "USAGE_BLOCKED", "ENDPOINT_REMOVED"})
#: Words of an error of the workflow or the account. A "workflow run" is what an input becomes, not the workflow.
_WORKFLOW = re.compile(
    r"workflow(?![ _-]?runs?\b)|deploy|publish|\bdraft|api[ _-]?(key|version)|x-extend-|workspace|organi[sz]ation"
    r"|account|credit|billing|quota|permission|authori[sz]|endpoint|priority",
    re.IGNORECASE,
)
#: Words of an error of the workflow version that the call names. The API's own version is another thing.
_VERSION = re.compile(r"(?<!api.)\bversions?\b|\bdraft", re.IGNORECASE)
_FILE = re.compile(r"\bfiles?\b", re.IGNORECASE)

#: A chunk that was not taken waits for 1 s at first, twice as long each time, at most this long, in seconds.
LONGEST_RETURNED = 300.0
#: While Extend itself is not heard, calls are held up for 1 s at first, twice as long each time, at most this long.
LONGEST_UNHEARD = 60.0


def classify_failure(error: httpx.HTTPError) -> Verdict:
    """Return the verdict on a call that got no answer."""
    reason = clean(describe(error))
    return Returned(reason) if isinstance(error, _NOT_SENT) else InDoubt(reason)


def classify_response(
    response: httpx.Response, files: Sequence[Mapping[str, Any]] = (), version: str | None = None
) -> Verdict:
    """Return the verdict on an answer.

    ``files`` are those of the call's inputs, in order; ``version`` is the workflow version that the call names.
    """
    status = response.status_code
    if 200 <= status < 300:
        return _success(response.content)
    problem = read_problem(response.content)
    if problem is None:
        return _of_a_stranger(response)
    reason = f"{status} {problem.code}: {problem.message}"
    wait = retry_after(response.headers) or None
    if status == 429:
        return Returned(reason, wait, limited=True, heard=True)
    if not 400 <= status < 500 or status in _MAY_BE_MADE:
        # Also if it is retryable: to Extend a second batch is a retry, to us it is every document twice.
        return InDoubt(reason)
    if problem.retryable:
        return Returned(reason, wait, heard=True)
    places = named(problem.message, files)
    if _is_of_inputs(status, problem, places):
        return Rejected(status, problem.code, problem.message, places)
    return Blocked(reason, "submission" if _is_of_version(status, problem, version) else "workflow")


def _of_a_stranger(response: httpx.Response) -> Verdict:
    """The verdict on an error that is not in Extend's form: a proxy, a firewall, a portal said it."""
    status = response.status_code
    shown = read_error(response.content)[1]
    reason = f"{status}, and the body is not Extend's: {shown}" if shown else f"{status}, and the body is not Extend's"
    if status in _NOTHING_MADE:
        return Returned(reason, retry_after(response.headers) or None, limited=status == 429)
    return InDoubt(reason)


def _is_of_inputs(status: int, problem: Problem, places: tuple[int, ...]) -> bool:
    """Tell an error of the inputs from one of the workflow or the account. If it cannot be told, it is the latter."""
    if problem.code in _CODES_OF_ACCOUNT or status not in _OF_INPUTS | {404, 415}:
        return False
    if places:
        return True
    if _WORKFLOW.search(f"{problem.code} {problem.message}"):
        return False
    return status in _OF_INPUTS or _FILE.search(problem.message) is not None


def _is_of_version(status: int, problem: Problem, version: str | None) -> bool:
    """Return if an error is of the workflow version that the call names, and not of the whole workflow."""
    of_account = problem.code in _CODES_OF_ACCOUNT or status not in (400, 404, 422)
    return version is not None and not of_account and _VERSION.search(problem.message) is not None


def _success(content: bytes) -> Verdict:
    try:
        body = read_json(content)
    except ValueError:
        # Not Extend's own answer, so it says nothing of whether the batch was made: evidence decides.
        return InDoubt("a success whose body is not JSON")
    batch_id = body.get("batchId") if isinstance(body, dict) else None
    if isinstance(batch_id, str) and 0 < len(batch_id) <= 255 and clean(batch_id) == batch_id:
        return Taken(batch_id)
    return Unclear("a success without a batchId")


def is_heard(outcome: object) -> bool:
    """Return if Extend itself answered, whatever it said."""
    return outcome.heard if isinstance(outcome, Returned) else not isinstance(outcome, InDoubt)


def chunk_wait(returned: Returned, attempt: int) -> float:
    """Return how long a chunk waits after an attempt that was not taken, in seconds."""
    return _doubled(attempt, LONGEST_RETURNED) if returned.wait is None else returned.wait


def calls_wait(outcome: object, in_a_row: int) -> float:
    """Return for how long no call is made, in seconds.

    That is after a 429, or after ``in_a_row`` answers (this one included) that were not Extend's. A single one of
    those holds up nothing: a firewall may dislike one chunk.
    """
    if isinstance(outcome, Returned) and outcome.limited:
        return _doubled(in_a_row, LONGEST_UNHEARD) if outcome.wait is None else outcome.wait
    return _doubled(in_a_row - 1, LONGEST_UNHEARD) if in_a_row > 1 else 0.0


def _doubled(times: int, most: float) -> float:
    return min(2.0 ** min(max(times - 1, 0), 30), most)
