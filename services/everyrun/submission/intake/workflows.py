"""Check that Extend has the workflow and the version that an upload names, before the upload is accepted.

So Everyrun refuses a mistyped id at once. Otherwise it would accept inputs that it can never send.
"""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from everyrun.errors import Invalid
from everyrun.extend.client import ExtendError, Page
from everyrun.telemetry import log

_log = log(__name__)

#: How long an answer is cached, in seconds. ``_KNOWN_FOR`` applies if Extend has the workflow, ``_UNSURE_FOR`` if
#: Extend does not have it or did not answer.
_KNOWN_FOR, _UNSURE_FOR = 300.0, 15.0
#: How long an upload waits for Extend's answer, in seconds.
_TIMEOUT = 3.0
#: Maximum number of cached answers.
_REMEMBERED = 1000
#: Maximum number of workflows that an error names: similar workflows, and any workflows if none is similar.
_NEAR, _LISTED = 3, 5


class WorkflowSource(Protocol):
    """The part of :class:`everyrun.extend.client.Extend` that this module uses."""

    async def get_workflow(self, workflow_id: str, within: float) -> bytes:
        """Return the workflow as JSON. Raises ExtendError, for example if there is no such workflow."""

    async def list_workflows(self, within: float) -> Page:
        """Return a page of workflow summaries. Raises ExtendError."""

    async def get_workflow_version(self, workflow_id: str, version: str, within: float) -> bytes:
        """Return the version as JSON. Raises ExtendError, for example if there is no such version."""

    async def list_workflow_versions(self, workflow_id: str, within: float) -> Page:
        """Return a page of version summaries. Raises ExtendError."""


class _Unknown(Invalid):
    """Extend does not have the workflow or version that an upload names. ``near`` lists what may have been meant."""

    def __init__(self, message: str, near: list[str]) -> None:
        super().__init__(message)
        self.near = near


class UnknownWorkflowError(_Unknown):
    """Extend has no workflow with this id. The text names similar workflows, and ``near`` lists their ids."""


class UnknownVersionError(_Unknown):
    """The workflow does not have this version. The text and ``near`` name the versions that it has."""


class _Key(NamedTuple):
    workflow_id: str
    version: str | None = None


class _Answer(NamedTuple):
    #: The time until which the answer is valid, by the clock of Workflows.
    until: float
    #: Why Extend gave no answer. None if Extend answered.
    unchecked: str | None = None
    unknown: _Unknown | None = None


class Workflows:
    """Asks Extend about workflows and their versions, and caches the answers for a while.

    The requests count against the request budget for GETs.
    """

    def __init__(self, extend: WorkflowSource, clock: Callable[[], float] = time.monotonic) -> None:
        self._extend = extend
        self._clock = clock
        self._answers: dict[_Key, _Answer] = {}
        #: Why Extend gave no answer the last time. For a while, this is the answer for all workflows, so that not every
        #: upload must wait for the timeout.
        self._unavailable = _Answer(0.0)
        self._lock = asyncio.Lock()

    async def check(self, workflow_id: str, version: str | None = None) -> str | None:
        """Return None if Extend has the workflow, and the version if one is given.

        If Extend gave no answer, return the reason. The upload is then accepted without the check. Raises
        UnknownWorkflowError or UnknownVersionError if Extend does not have the workflow or the version.
        """
        unchecked = await self._check(_Key(workflow_id))
        return unchecked if unchecked or version is None else await self._check(_Key(workflow_id, version))

    async def _check(self, key: _Key) -> str | None:
        answer = self._cached(key)
        if answer is None:
            async with self._lock:
                answer = self._cached(key) or await self._ask(key)
                if len(self._answers) >= _REMEMBERED:
                    self._answers.clear()
                self._answers[key] = answer
        if answer.unknown is not None:
            raise type(answer.unknown)(str(answer.unknown), answer.unknown.near)
        return answer.unchecked

    def _cached(self, key: _Key) -> _Answer | None:
        now = self._clock()
        answer = self._answers.get(key)
        if answer is not None and now < answer.until:
            return answer
        return self._unavailable if self._unavailable.unchecked is not None and now < self._unavailable.until else None

    async def _ask(self, key: _Key) -> _Answer:
        unknown: _Unknown | None
        try:
            async with asyncio.timeout(_TIMEOUT):
                if key.version is None:
                    unknown = await self._unknown_workflow(key.workflow_id)
                else:
                    unknown = await self._unknown_version(key.workflow_id, key.version)
        except ExtendError as error:
            return self._not_asked(key.workflow_id, str(error))
        except TimeoutError:
            return self._not_asked(key.workflow_id, f"no answer within {_TIMEOUT:.0f} s")
        now = self._clock()
        return _Answer(now + _KNOWN_FOR) if unknown is None else _Answer(now + _UNSURE_FOR, unknown=unknown)

    def _not_asked(self, workflow_id: str, why: str) -> _Answer:
        _log.warning("a workflow could not be checked; its upload is accepted", workflow=workflow_id, error=why)
        self._unavailable = _Answer(self._clock() + _UNSURE_FOR, unchecked=why)
        return self._unavailable

    async def _unknown_workflow(self, workflow_id: str) -> UnknownWorkflowError | None:
        """Return the error if Extend has no such workflow, else None. Raises ExtendError."""
        try:
            await self._extend.get_workflow(workflow_id, within=_TIMEOUT)
        except ExtendError as error:
            if error.status != 404 or not error.from_extend:
                raise
        else:
            return None
        # The 404 may also mean that the path does not exist, for example if the base URL is wrong. Then the list of
        # workflows fails too and raises ExtendError, so the upload is not refused.
        listed = await self._extend.list_workflows(within=_TIMEOUT)
        if any(isinstance(found, dict) and found.get("id") == workflow_id for found in listed.data):
            return None
        return unknown_workflow(workflow_id, listed.data, complete=listed.token is None)

    async def _unknown_version(self, workflow_id: str, version: str) -> UnknownVersionError | None:
        """Return the error if the workflow has no such version, else None. Raises ExtendError."""
        try:
            await self._extend.get_workflow_version(workflow_id, version, within=_TIMEOUT)
        except ExtendError as error:
            if error.status != 404 or not error.from_extend:
                raise
        else:
            return None
        # As in _unknown_workflow: if the path does not exist, the list fails too, so the upload is not refused.
        listed = await self._extend.list_workflow_versions(workflow_id, within=_TIMEOUT)
        versions = [str(one["version"]) for one in listed.data if isinstance(one, dict) and one.get("version")]
        if version in versions:
            return None
        more = "" if listed.token is None else ", ..."
        known = f"; it has: {', '.join(versions)}{more}" if versions else ""
        return UnknownVersionError(f"workflow {workflow_id} has no version {version!r} at Extend{known}", versions)


def unknown_workflow(workflow_id: str, listed: Iterable[Any], *, complete: bool) -> UnknownWorkflowError:
    """Return the error about an unknown workflow. Pure.

    The error names the workflows that have a similar id, or whose name is ``workflow_id``. If there are none, it names
    the first few workflows in ``listed``. ``complete`` is true if ``listed`` has all workflows.
    """
    summaries = [one for one in listed if isinstance(one, dict) and isinstance(one.get("id"), str)]
    names = {one["id"]: str(one.get("name") or "") for one in summaries}
    wanted = workflow_id.casefold()
    named = [known for known, name in names.items() if wanted in (name.casefold(), known.casefold())]
    near = list(dict.fromkeys([*named, *difflib.get_close_matches(workflow_id, names, _NEAR, 0.75)]))[:_NEAR]

    def shown(ids: Iterable[str]) -> str:
        return ", ".join(f"{known} ({names[known]})" if names[known] else known for known in ids)

    message = f"Extend has no workflow {workflow_id!r} that this API key can see"
    if near:
        return UnknownWorkflowError(f"{message}; did you mean {shown(near)}?", near)
    if not names:
        return UnknownWorkflowError(f"{message}, and no other. Is it the key of the right workspace?", [])
    some = list(names)[:_LISTED]
    more = ", ..." if len(names) > _LISTED or not complete else ""
    return UnknownWorkflowError(f"{message}; it has: {shown(some)}{more}", [])
