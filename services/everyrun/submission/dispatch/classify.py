"""Decide what the answer to a batch call means, or that no answer came. Pure.

Only a body in Extend's own form counts as Extend's word (``read_problem``). docs/explanation/delivery.md has the table
of verdicts by status.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import httpx
import msgspec

from everyrun.extend.client import Problem, clean, read_error, read_json, read_problem, retry_after
from everyrun.redact import describe


class Accepted(msgspec.Struct, frozen=True):
    """Extend accepted the batch."""

    batch_id: str


class Refused(msgspec.Struct, frozen=True):
    """Extend refused the call because of its inputs, and made nothing. ``named`` are indexes of inputs it names."""

    status: int
    code: str
    message: str
    named: tuple[int, ...] = ()


class Returned(msgspec.Struct, frozen=True):
    """The batch was not accepted for now, and Extend made nothing: it will be retried.

    ``wait`` is how long Extend asked to wait, in seconds. ``rate_limited`` is set for a 429, ``from_extend`` if Extend
    itself answered.
    """

    reason: str
    wait: float | None = None
    rate_limited: bool = False
    from_extend: bool = False


class Blocked(msgspec.Struct, frozen=True):
    """The batch was not accepted, and will not be before a person acts.

    ``scope`` is what must be paused: the workflow, for an error of the workflow, key, credits or permission; the
    submission, for an error of the workflow version that it names, which affects no other submission.
    """

    reason: str
    scope: Literal["workflow", "submission"] = "workflow"


class Unclear(msgspec.Struct, frozen=True):
    """The status says accepted, but there is no batchId: a person must decide."""

    reason: str


class InDoubt(msgspec.Struct, frozen=True):
    """The batch may have been accepted or not."""

    reason: str


Verdict = Accepted | Refused | Returned | Blocked | Unclear | InDoubt

#: The request was not sent whole. LocalProtocolError is raised by our own side: h11 refuses to write invalid HTTP, such
#: as a header with a line break. It never comes in the middle of a body, because a batch call's body is complete before
#: the call.
_NOT_SENT = (
    *(httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.ProxyError),
    httpx.LocalProtocolError,
)

#: Statuses that refuse a request before it has any effect, from any server (RFC 9110, 6585, 7725).
_NO_EFFECT = frozenset(
    {400, 401, 402, 403, 404, 405, 406, 407, 410, 411, 413, 414, 415, 417, 421, 422, 426, 428, 429, 431, 451}
)
#: Statuses of a request that may have had an effect, or may still have one.
_MAY_HAVE_EFFECT = frozenset({408, 409, 425, 499})

#: Statuses of Extend that can be about the inputs. All others are about the workflow or the account.
_OF_INPUTS = frozenset({400, 413, 422})
_CODES_OF_ACCOUNT = frozenset({"UNAUTHORIZED", "FORBIDDEN", "USAGE_BLOCKED", "ENDPOINT_REMOVED"})
#: Words in an error about the workflow or the account. A "workflow run" is made from an input, so it does not count.
_WORKFLOW = re.compile(
    r"workflow(?![ _-]?runs?\b)|deploy|publish|\bdraft|api[ _-]?(key|version)|x-extend-|workspace|organi[sz]ation"
    r"|account|credit|billing|quota|permission|authori[sz]|endpoint|priority",
    re.IGNORECASE,
)
#: Words in an error about the workflow version that the call names, but not about the version of the API.
_VERSION = re.compile(r"(?<!api.)\bversions?\b|\bdraft", re.IGNORECASE)
_FILE = re.compile(r"\bfiles?\b", re.IGNORECASE)
#: ``inputs[3]``, ``inputs.3`` or ``inputs/3``, counted from 0 like Extend's own request.
_INDEX = re.compile(r"\binputs?(?:\[(\d{1,6})\]|[./](\d{1,6})(?!\d))")
_WORD = re.compile(r"[A-Za-z0-9_-]+")

#: A returned chunk waits 1 s at first, then twice as long after each attempt, up to this maximum, in seconds.
MAX_CHUNK_WAIT = 300.0
#: While Extend itself does not answer, all calls wait 1 s at first, then twice as long, up to this maximum, in seconds.
MAX_CALLS_WAIT = 60.0


def classify_failure(error: httpx.HTTPError) -> Verdict:
    """Return the verdict on a call that got no answer."""
    reason = clean(describe(error))
    return Returned(reason) if isinstance(error, _NOT_SENT) else InDoubt(reason)


def classify_response(
    response: httpx.Response, files: Sequence[Mapping[str, Any]] = (), version: str | None = None
) -> Verdict:
    """Return the verdict on an answer.

    ``files`` are the files of the call's inputs, in order. ``version`` is the workflow version that the call names.
    """
    status = response.status_code
    if 200 <= status < 300:
        return _success(response.content)
    problem = read_problem(response.content)
    if problem is None:
        return _not_from_extend(response)
    reason = f"{status} {problem.code}: {problem.message}"
    wait = retry_after(response.headers) or None
    if status == 429:
        return Returned(reason, wait, rate_limited=True, from_extend=True)
    if not 400 <= status < 500 or status in _MAY_HAVE_EFFECT:
        # Even if Extend calls it retryable: a second batch would process every document twice.
        return InDoubt(reason)
    if problem.retryable:
        return Returned(reason, wait, from_extend=True)
    named = named_inputs(problem.message, files)
    if _is_of_inputs(status, problem, named):
        return Refused(status, problem.code, problem.message, named)
    return Blocked(reason, "submission" if _is_of_version(status, problem, version) else "workflow")


def named_inputs(message: str, files: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Return the indexes of the inputs that a message names, by their index or by the id of their file."""
    words = set(_WORD.findall(message))
    found = {int(match[1] or match[2]) for match in _INDEX.finditer(message)}
    found |= {index for index, file in enumerate(files) if file.get("id") in words}
    return tuple(sorted(index for index in found if index < len(files)))


def _not_from_extend(response: httpx.Response) -> Verdict:
    """Return the verdict on an error that is not in Extend's form: a proxy, firewall or portal answered."""
    status = response.status_code
    shown = read_error(response.content)[1]
    reason = f"{status}, and the body is not Extend's: {shown}" if shown else f"{status}, and the body is not Extend's"
    if status in _NO_EFFECT:
        return Returned(reason, retry_after(response.headers) or None, rate_limited=status == 429)
    return InDoubt(reason)


def _is_of_inputs(status: int, problem: Problem, named: tuple[int, ...]) -> bool:
    """Return if the error is about the inputs. If in doubt, it is about the workflow or the account."""
    if problem.code in _CODES_OF_ACCOUNT or status not in _OF_INPUTS | {404, 415}:
        return False
    if named:
        return True
    if _WORKFLOW.search(f"{problem.code} {problem.message}"):
        return False
    return status in _OF_INPUTS or _FILE.search(problem.message) is not None


def _is_of_version(status: int, problem: Problem, version: str | None) -> bool:
    """Return if the error is about the workflow version that the call names, and not about the whole workflow."""
    of_account = problem.code in _CODES_OF_ACCOUNT or status not in (400, 404, 422)
    return version is not None and not of_account and _VERSION.search(problem.message) is not None


def _success(content: bytes) -> Verdict:
    try:
        body = read_json(content)
    except ValueError:
        # Extend answers in JSON, so this is not Extend's answer and proves nothing: evidence decides.
        return InDoubt("a success whose body is not JSON")
    batch_id = body.get("batchId") if isinstance(body, dict) else None
    if isinstance(batch_id, str) and 0 < len(batch_id) <= 255 and clean(batch_id) == batch_id:
        return Accepted(batch_id)
    return Unclear("a success without a batchId")


def is_from_extend(outcome: object) -> bool:
    """Return if Extend itself answered the call."""
    return outcome.from_extend if isinstance(outcome, Returned) else not isinstance(outcome, InDoubt)


def chunk_wait(returned: Returned, attempt: int) -> float:
    """Return how long a chunk waits after a returned attempt, in seconds."""
    return _doubled(attempt, MAX_CHUNK_WAIT) if returned.wait is None else returned.wait


def calls_wait(outcome: object, in_a_row: int) -> float:
    """Return how long all calls wait after an outcome, in seconds.

    They wait after a 429, and after ``in_a_row`` answers (this one included) that were not Extend's. A single answer
    that is not Extend's delays nothing: a firewall may reject one particular chunk.
    """
    if isinstance(outcome, Returned) and outcome.rate_limited:
        return _doubled(in_a_row, MAX_CALLS_WAIT) if outcome.wait is None else outcome.wait
    return _doubled(in_a_row - 1, MAX_CALLS_WAIT) if in_a_row > 1 else 0.0


def _doubled(times: int, maximum: float) -> float:
    return min(2.0 ** min(max(times - 1, 0), 30), maximum)
