"""From a WorkflowRun as Extend gave it to the ``run-observed`` record; the same for webhooks and for polls."""

from __future__ import annotations

from typing import Literal

import msgspec

from everyrun.log.cloudevents import Record, record
from everyrun.log.events import RunObserved
from everyrun.log.keys import run_key

#: A run over this is kept without its steps and files, so that the event fits a record of 16 MiB.
MAX_RUN_BYTES = 15 << 20


class NotARunError(Exception):
    """The JSON is no WorkflowRun; the text says why."""


class RunHead(msgspec.Struct, frozen=True):
    """What is read of a run before it is written to the log; the rest is not looked at."""

    object: str
    id: str
    status: str
    batchId: str | None = None  # noqa: N815
    metadata: msgspec.Raw = msgspec.Raw(b"{}")


_head = msgspec.json.Decoder(RunHead)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder().encode


def read_head(run: bytes | msgspec.Raw) -> RunHead:
    """The head of a WorkflowRun (SDK 1.20.0, types/workflow_run.py). Raises NotARunError."""
    try:
        head = _head.decode(run)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise NotARunError(f"not a workflow run: {error}") from None
    if head.object != "workflow_run":
        raise NotARunError(f"not a workflow run but a {head.object[:40]}")
    if not head.id:
        raise NotARunError("the run's id is empty")
    return head


def fit(run: bytes) -> tuple[bytes, bool]:
    """The run as it is, and False; one over MAX_RUN_BYTES with ``stepRuns`` and ``files`` emptied, and True.

    Raises NotARunError where it is too large even so.
    """
    if len(run) <= MAX_RUN_BYTES:
        return run, False
    fields = _fields.decode(run)
    fields.update(stepRuns=msgspec.Raw(b"[]"), files=msgspec.Raw(b"[]"))
    head = _encode(fields)
    if len(head) > MAX_RUN_BYTES:
        raise NotARunError(f"the run has {len(run)} bytes, and {len(head)} without steps and files")
    return head, True


def observed(
    run: bytes,
    head: RunHead,
    *,
    source: Literal["webhook", "poll"],
    id: str,
    time: str,
    service: str,
    event_type: str | None = None,
) -> Record:
    """The record for ``runs``: the run byte for byte unless it is too large. Key: :func:`run_key`.

    ``time`` is the CloudEvents time: when the bridge received the webhook, or when the poll asked. Raises NotARunError.
    """
    kept, truncated = fit(run)
    event = RunObserved(source=source, run=msgspec.Raw(kept), event_type=event_type, truncated=truncated)
    key = run_key(head.metadata, head.batchId, head.id)
    return record("runs", event, key=key, id=id, source=service, time=time, subject=head.id)
