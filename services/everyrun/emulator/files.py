"""The files that Extend holds: those that were uploaded, and those that runs were given as a URL or as text."""

from __future__ import annotations

import heapq
import shutil
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from everyrun.emulator import render
from everyrun.emulator.events import Links
from everyrun.emulator.listing import Key, make_cursor, page_size, read_cursor
from everyrun.emulator.runs import WITH_STEPS, Run
from everyrun.emulator.store import Store
from everyrun.emulator.validate import invalid, missing

_FILTERS = ("nameContains", "sortDir")
#: A run has fewer files than this (docs of workflow_runs.create: a package of up to 50).
_MOST_OF_A_RUN = 64
#: Tie-breaks of uploads sort below those of runs' files.
_RUNS_FROM = 1 << 32
#: File types whose content is text; only these show their own text as parsed contents.
_TEXT = frozenset({"TXT", "CSV", "XML", "HTML"})


class Files:
    """Finds, lists and deletes files. A file of a run follows from the run, so only its deletion is kept."""

    def __init__(self, store: Store, folder: Path, links: Links, runs: list[Run], by_id: Mapping[str, Run]) -> None:
        self._store = store
        self._folder = folder
        self._links = links
        self._runs = runs
        self._by_id = by_id
        self._uploads: dict[str, dict[str, Any]] = store.things("file")
        self._deleted: dict[str, Any] = store.things("deleted_file")
        self._next = 1 + max((kept["number"] for kept in self._uploads.values()), default=-1)
        folder.mkdir(parents=True, exist_ok=True)

    def name_of(self, file_id: str) -> str | None:
        """Return the name of a file that a run may be given by its id, or None if there is no such file."""
        found = self._summary(file_id, 0.0)
        return None if found is None else str(found["name"])

    async def upload(self, file_id: str, name: str, kind: str | None, content: BinaryIO, ahead: float) -> Any:
        """Keep an upload and its content. Return it as POST /files/upload answers."""
        with (self._folder / file_id).open("wb") as out:
            shutil.copyfileobj(content, out)
        kept = {"name": name, "at": time.time(), "type": kind, "number": self._next}
        self._next += 1
        self._uploads[file_id] = kept
        await self._store.now(self._store.put("file", file_id, kept))
        return render.file(self._uploaded(file_id, ahead), None)

    def get(self, file_id: str, shown: frozenset[str], ahead: float) -> dict[str, Any]:
        """Return a file as GET /files/{id} answers, with the parsed contents that ``shown`` names.

        Raises ApiProblem 404.
        """
        summary = self._summary(file_id, ahead)
        if summary is None:
            raise missing(f"file {file_id}")
        contents = self._contents(summary, shown) if shown and self._parsed(file_id) else None
        return render.file(summary, contents) | {"presignedUrl": self._links.make_for_file(file_id, time.time())}

    async def delete(self, file_id: str) -> None:
        """Delete a file for good: its id is unknown from then on. Raises ApiProblem 404."""
        if self._summary(file_id, 0.0) is None:
            raise missing(f"file {file_id}")
        if self._uploads.pop(file_id, None) is not None:
            await self._store.now(self._store.drop("file", file_id))
            (self._folder / file_id).unlink(missing_ok=True)
        else:
            self._deleted[file_id] = {}
            await self._store.now(self._store.put("deleted_file", file_id, {}))

    def open_link(self, token: str) -> bytes | None:
        """Return the content behind a presigned URL, or None if the link is wrong or expired, or the file is deleted.

        The content of a run's URL was never fetched: its link gives a line that says so.
        """
        file_id = self._links.read_for_file(token, time.time())
        if file_id is None or self.name_of(file_id) is None:
            return None
        return self._content(file_id)

    def page(self, query: Mapping[str, str], ahead: float) -> dict[str, Any]:
        """Return a page of GET /files, by default the newest file first. Raises ApiProblem."""
        size = page_size(query.get("maxPageSize"))
        direction, part = query.get("sortDir", "desc"), query.get("nameContains", "")
        if direction not in ("asc", "desc"):
            raise invalid("sortDir: asc or desc")
        rows: list[tuple[Key, dict[str, Any]]] = []
        for key, file_id in self._ordered(direction == "desc", read_cursor(query, _FILTERS)):
            summary = self._summary(file_id, ahead)
            if summary is not None and part in summary["name"]:
                rows.append((key, summary))
            if len(rows) > size:
                break
        page: dict[str, Any] = {"object": "list", "data": [summary for _, summary in rows[:size]]}
        if len(rows) > size:
            page["nextPageToken"] = make_cursor(query, _FILTERS, rows[size - 1][0])
        return page

    def _ordered(self, down: bool, after: Key | None) -> Iterator[tuple[Key, str]]:
        uploads = [((kept["at"], kept["number"]), file_id) for file_id, kept in self._uploads.items()]
        for entry in heapq.merge(sorted(uploads, reverse=down), self._of_runs(down, after), reverse=down):
            if after is None or (entry[0] < after if down else entry[0] > after):
                yield entry

    def _of_runs(self, down: bool, after: Key | None) -> Iterator[tuple[Key, str]]:
        places: Iterator[int]
        if down:
            end = len(self._runs) if after is None else bisect_right(self._runs, after[0], key=_created)
            places = iter(range(end - 1, -1, -1))
        else:
            start = 0 if after is None else bisect_left(self._runs, after[0], key=_created)
            places = iter(range(start, len(self._runs)))
        for place in places:
            run = self._runs[place]
            own = render.own_files(run)
            for number, file_id in sorted(own.items(), reverse=down):
                yield (run.created_at, _RUNS_FROM + run.number * _MOST_OF_A_RUN + number), file_id

    def _uploaded(self, file_id: str, ahead: float) -> dict[str, Any]:
        kept = self._uploads[file_id]
        shown = render.file_summary(file_id, kept["name"], kept["at"] + ahead)
        return {**shown, "type": kept["type"]} if kept["type"] else shown

    def _summary(self, file_id: str, ahead: float) -> dict[str, Any] | None:
        if file_id in self._uploads:
            return self._uploaded(file_id, ahead)
        run = self._run_of(file_id)
        if run is None or file_id in self._deleted:
            return None
        shown = render.files(run.by_clock(ahead))
        return next((shown[number] for number, own in render.own_files(run).items() if own == file_id), None)

    def _run_of(self, file_id: str) -> Run | None:
        return self._by_id.get(render.run_of_file(file_id))

    def _parsed(self, file_id: str) -> bool:
        run = self._run_of(file_id)
        if run is not None and run.status in WITH_STEPS:
            return True
        named = msgspec.json.encode(file_id)
        return any(named in run.file and run.status in WITH_STEPS for run in self._runs)

    def _content(self, file_id: str) -> bytes:
        if file_id in self._uploads:
            return (self._folder / file_id).read_bytes()
        run = self._run_of(file_id)
        given = msgspec.json.decode(run.file) if run is not None else {}
        return str(given.get("text", "The emulator never fetches a URL.")).encode()

    def _contents(self, summary: dict[str, Any], shown: frozenset[str]) -> dict[str, Any]:
        """Return FileContents (SDK 1.20.0, types/file_contents.py); of what is not text, a stand-in."""
        kind = summary["type"]
        text = f"Contents of {summary['name']}."
        if kind in _TEXT:
            text = self._content(summary["id"]).decode("utf-8", "replace")
        found: dict[str, Any] = {"pages": []}
        if kind == "EXCEL":
            found["sheets"] = [{"sheetName": "Sheet1", **({"rawText": text} if "rawText" in shown else {})}]
        elif "rawText" in shown:
            found["rawText"] = text
        if kind in ("PDF", "IMG"):
            marked = {"markdown": text} if "markdown" in shown else {}
            found["pages"] = [{"pageNumber": 1, "pageHeight": 842.0, "pageWidth": 595.0, **marked}]
        elif kind == "DOCX":
            found["pages"] = [{"pageNumber": 1, **({"html": f"<p>{text}</p>"} if "html" in shown else {})}]
        return found


def _created(run: Run) -> float:
    return run.created_at
