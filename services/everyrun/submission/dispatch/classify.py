"""Decide what the outcome of a batch call means: an answer, or a failure without an answer. Pure.

An error counts as Extend's own only if its body has the form that Extend's errors have (``read_problem``), because a
proxy or a firewall may answer too. docs/explanation/delivery.md has the table of verdicts by status.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import httpx
import msgspec

from everyrun.extend.client import Problem, clean, read_error, read_json, read_problem, retry_after
from everyrun.redact import describe

BlockedScope = Literal["workflow", "submission", "objects"]


class Accepted(msgspec.Struct, frozen=True):
    """Extend accepted the batch."""

    batch_id: str


class Refused(msgspec.Struct, frozen=True):
    """Extend refused the call because of its inputs, and created nothing.

    ``named`` contains the indexes of the inputs that Extend's message names. The outcome is the same if Everyrun could
    not read the objects of these inputs, and therefore did not call Extend (object_links.py).
    """

    status: int
    code: str
    message: str
    named: tuple[int, ...] = ()


class Returned(msgspec.Struct, frozen=True):
    """Extend did not accept the batch, but may accept it later. Extend created nothing, so the chunk is sent again.

    ``wait`` is how long Extend asked to wait, in seconds. None if Extend did not ask. ``rate_limited`` is true for a
    429. ``from_extend`` is true if Extend itself answered.
    """

    reason: str
    wait: float | None = None
    rate_limited: bool = False
    from_extend: bool = False


class Blocked(msgspec.Struct, frozen=True):
    """Extend did not accept the batch, and will not accept it before a person acts.

    ``scope`` is what must be paused. It is the workflow if the error is about the workflow, the API key, the credits or
    a permission. It is the submission if the error is about the workflow version that the submission names, because
    submissions with other versions are not affected. It is the submission too (``objects``) if Everyrun has no
    credentials that can read the submission's objects, and therefore did not call Extend.
    """

    reason: str
    scope: BlockedScope = "workflow"


class Unclear(msgspec.Struct, frozen=True):
    """The status means that Extend accepted the batch, but the answer has no batchId. So a person must decide."""

    reason: str


class InDoubt(msgspec.Struct, frozen=True):
    """It is not known if Extend accepted the batch."""

    reason: str


Verdict = Accepted | Refused | Returned | Blocked | Unclear | InDoubt

#: Errors after which it is certain that the request was not sent completely. LocalProtocolError comes from our own
#: side: h11 refuses to write invalid HTTP, such as a header with a line break. It cannot occur in the middle of a body,
#: because the body of a batch call is complete before the call.
_NOT_SENT = (
    *(httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.ProxyError),
    httpx.LocalProtocolError,
)

#: Statuses which mean that a request was refused before it had any effect, even if a proxy answered (RFC 9110, 6585,
#: 7725).
_NO_EFFECT = frozenset(
    {400, 401, 402, 403, 404, 405, 406, 407, 410, 411, 413, 414, 415, 417, 421, 422, 426, 428, 429, 431, 451}
)
#: Statuses below 500 after which the request may have had an effect, or may still have one.
_MAY_HAVE_EFFECT = frozenset({408, 409, 425, 499})

#: Statuses of errors that are about the inputs unless the text says otherwise. Errors with 404 and 415 are about the
#: inputs only if they name an input or a file. Errors with any other status are about the workflow or the account.
_OF_INPUTS = frozenset({400, 413, 422})
_CODES_OF_ACCOUNT = frozenset({"UNAUTHORIZED", "FORBIDDEN", "USAGE_BLOCKED", "ENDPOINT_REMOVED"})
#: Words which show that an error is about the workflow or the account. "Workflow run" is not among them, because a run
#: is made from an input.
_WORKFLOW = re.compile(
    r"workflow(?![ _-]?runs?\b)|deploy|publish|\bdraft|api[ _-]?(key|version)|x-extend-|workspace|organi[sz]ation"
    r"|account|credit|billing|quota|permission|authori[sz]|endpoint|priority",
    re.IGNORECASE,
)
#: Words which show that an error is about the workflow version that the call names. The version of the API does not
#: count.
_VERSION = re.compile(r"(?<!api.)\bversions?\b|\bdraft", re.IGNORECASE)
_FILE = re.compile(r"\bfiles?\b", re.IGNORECASE)
#: Matches an input's index, counted from 0 as in the request: ``inputs[3]``, ``inputs.3`` or ``inputs/3``.
_INDEX = re.compile(r"\binputs?(?:\[(\d{1,6})\]|[./](\d{1,6})(?!\d))")
_WORD = re.compile(r"[A-Za-z0-9_-]+")

#: Maximum wait before a returned chunk is sent again, in seconds. The wait is 1 s after the first attempt, and doubles
#: with each further attempt.
MAX_CHUNK_WAIT = 300.0
#: Maximum wait of all calls while Extend itself does not answer, in seconds. The wait is 1 s at first, and doubles with
#: each further call that Extend does not answer.
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
        # The call is in doubt even if Extend says that the error is retryable. If the call was accepted, a second call
        # would make a second batch, and every document would be processed twice.
        return InDoubt(reason)
    if problem.retryable:
        return Returned(reason, wait, from_extend=True)
    named = named_inputs(problem.message, files)
    if _is_of_inputs(status, problem, named):
        return Refused(status, problem.code, problem.message, named)
    return Blocked(reason, "submission" if _is_of_version(status, problem, version) else "workflow")


def named_inputs(message: str, files: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Return the indexes of the inputs that a message names, either by index or by the id of the input's file."""
    words = set(_WORD.findall(message))
    found = {int(match[1] or match[2]) for match in _INDEX.finditer(message)}
    found |= {index for index, file in enumerate(files) if file.get("id") in words}
    return tuple(sorted(index for index in found if index < len(files)))


def _not_from_extend(response: httpx.Response) -> Verdict:
    """Return the verdict on an error that is not in Extend's form, because a proxy, a firewall or a portal answered."""
    status = response.status_code
    shown = read_error(response.content)[1]
    reason = f"{status}, and the body is not Extend's: {shown}" if shown else f"{status}, and the body is not Extend's"
    if status in _NO_EFFECT:
        return Returned(reason, retry_after(response.headers) or None, rate_limited=status == 429)
    return InDoubt(reason)


def _is_of_inputs(status: int, problem: Problem, named: tuple[int, ...]) -> bool:
    """Return True if the error is about the inputs.

    If that is not certain, return False. The error is then treated as one about the workflow or the account, so that no
    input is refused by mistake.
    """
    if problem.code in _CODES_OF_ACCOUNT or status not in _OF_INPUTS | {404, 415}:
        return False
    if named:
        return True
    if _WORKFLOW.search(f"{problem.code} {problem.message}"):
        return False
    return status in _OF_INPUTS or _FILE.search(problem.message) is not None


def _is_of_version(status: int, problem: Problem, version: str | None) -> bool:
    """Return True if the error is about the workflow version that the call names, not about the whole workflow."""
    of_account = problem.code in _CODES_OF_ACCOUNT or status not in (400, 404, 422)
    return version is not None and not of_account and _VERSION.search(problem.message) is not None


def _success(content: bytes) -> Verdict:
    try:
        body = read_json(content)
    except ValueError:
        # Extend answers in JSON, so this answer is not from Extend and proves nothing. Evidence must decide.
        return InDoubt("a success whose body is not JSON")
    batch_id = body.get("batchId") if isinstance(body, dict) else None
    if isinstance(batch_id, str) and 0 < len(batch_id) <= 255 and clean(batch_id) == batch_id:
        return Accepted(batch_id)
    return Unclear("a success without a batchId")


def is_from_extend(outcome: object) -> bool:
    """Return True if Extend itself answered the call."""
    return outcome.from_extend if isinstance(outcome, Returned) else not isinstance(outcome, InDoubt)


def chunk_wait(returned: Returned, attempt: int) -> float:
    """Return how long a chunk waits after a returned attempt, in seconds."""
    return _doubled(attempt, MAX_CHUNK_WAIT) if returned.wait is None else returned.wait


def calls_wait(outcome: object, in_a_row: int) -> float:
    """Return how long all calls wait after the outcome of one call, in seconds.

    ``in_a_row`` is the number of consecutive calls, up to this one, that Extend itself did not answer. All calls wait
    after a 429. They also wait after two or more consecutive calls that Extend itself did not answer. One such call
    delays nothing, because a firewall may reject one particular chunk.
    """
    if isinstance(outcome, Returned) and outcome.rate_limited:
        return _doubled(in_a_row, MAX_CALLS_WAIT) if outcome.wait is None else outcome.wait
    return _doubled(in_a_row - 1, MAX_CALLS_WAIT) if in_a_row > 1 else 0.0


def _doubled(times: int, maximum: float) -> float:
    return min(2.0 ** min(max(times - 1, 0), 30), maximum)
