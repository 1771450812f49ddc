"""Define the route that exports the results of a submission as a stream of CSV, NDJSON or Parquet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, get_args

import asyncpg
from fastapi import FastAPI, Query
from fastapi.responses import StreamingResponse

from everyrun.http import InvalidFieldError, scope
from everyrun.openapi import answers
from everyrun.query.counts import counts_in, submission_of
from everyrun.query.export_formats import MEDIA, Format, encoder_of
from everyrun.query.export_reader import (
    Export,
    ahead,
    export_cursor,
    parts,
    read_export_cursor,
    state_of_tables,
    waiting_for_a_new_try,
)
from everyrun.query.filter_parameters import Wanted
from everyrun.query.filters import UNSENT
from everyrun.query.gate import Gate
from everyrun.query.paging import check_text
from everyrun.query.results import check_statuses
from everyrun.settings import Settings

#: Headers of the response.
CURSOR, SCOPE, NOT_SENT = "everyrun-export-cursor", "everyrun-export", "everyrun-not-sent"


def export_routes(app: FastAPI, settings: Settings, pool: asyncpg.Pool) -> None:
    """Add the route ``/v1/submissions/{submission_id}/export``."""
    gate = Gate("parts of exports")

    @app.get("/v1/submissions/{submission_id}/export", dependencies=[scope("read")])
    @answers(
        None,
        {404: "NOT_FOUND: there is no such submission."},
        streams=[media.media_type for media in MEDIA.values()],
    )
    async def export(
        submission_id: str,
        wanted: Wanted,
        format_: Annotated[str, Query(alias="format", description=f"One of {', '.join(get_args(Format))}.")] = "csv",
        extracted: Annotated[
            bool, Query(description="Add the column `extracted`: a list of objects with `step` and `value`, as JSON.")
        ] = False,
        since: Annotated[
            str | None,
            Query(
                description="The header `everyrun-export-cursor` of an earlier export with the same filters: only rows "
                "that have changed since."
            ),
        ] = None,
    ) -> StreamingResponse:
        """Export the inputs of a submission that fit the filters, with the columns of the view `flat_results`.

        The rows are in the order of `input_id`; each input is there once. Inputs that were not sent are left out. If
        the stream breaks off, the export is incomplete.

        The response has three headers. `everyrun-not-sent` is the number of inputs that were not sent.
        `everyrun-export-cursor` is for the parameter `since` of the next export. `everyrun-export` is `changes` if
        only rows that have changed are exported, else `all`. With `since`, all rows
        are exported if the tables were rebuilt or restored, or if another database server took over. A row may be
        exported again without a change: keep the row with the greatest `version` for each `input_id`.
        """
        check_text(submission_id=submission_id)
        if format_ not in get_args(Format):
            raise InvalidFieldError("format", f"{format_!r} is unknown; there are: {', '.join(get_args(Format))}")
        for status in wanted.status:
            if status in UNSENT:
                raise InvalidFieldError("status", f"{status}: inputs that were not sent cannot be exported")
        async with pool.acquire() as c, c.transaction(isolation="repeatable_read", readonly=True):
            submission = await submission_of(c, submission_id)
            await check_statuses(c, wanted.status)
            state = await state_of_tables(c)
            counts = await counts_in(c, settings, submission)
            not_sent = sum(one.inputs for one in counts.waiting) - await waiting_for_a_new_try(c, submission_id)
        changed_since = read_export_cursor(wanted, since, state)
        media = MEDIA[format_]  # type: ignore[index]
        asked = Export(wanted, format_, extracted, changed_since)  # type: ignore[arg-type]
        stream = _encoded(asked, ahead(parts(pool, gate, asked)))
        # Read the first part before the response begins, so that an error gets a response of its own.
        first = await anext(stream)
        headers = {
            CURSOR: export_cursor(wanted, state),
            NOT_SENT: str(max(not_sent, 0)),
            SCOPE: "all" if changed_since is None else "changes",
            "content-disposition": f'attachment; filename="{_file_name(submission_id)}.{media.suffix}"',
        }
        return StreamingResponse(_resumed(first, stream), media_type=media.media_type, headers=headers)


def _file_name(submission_id: str) -> str:
    return "".join(letter for letter in submission_id if letter.isascii() and (letter.isalnum() or letter == "_"))


async def _encoded(asked: Export, rows: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    encoder = encoder_of(asked.format, asked.columns)
    ready = encoder.begin()
    async for part in rows:
        ready += await encoder.add(part)
        if ready:
            yield ready
            ready = b""
    yield ready + await encoder.end()


async def _resumed(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for part in rest:
        yield part
