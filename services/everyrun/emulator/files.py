"""Find, list and delete files: uploaded files, and the files that runs were given as a URL or as text."""

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
from everyrun.emulator.listing import Key, make_cursor, page_size, read_cursor
from everyrun.emulator.runs import WITH_STEPS, Run
from everyrun.emulator.store import Store
from everyrun.emulator.validate import invalid, not_found
from everyrun.emulator.webhook_content import Links

_FILTERS = ("nameContains", "sortDir")
#: A number greater than 50, the maximum number of files in a run (a package of files; docs of workflow_runs.create).
_MAX_FILES_PER_RUN = 64
#: A list sorts files by time and then by a number. Files that were given to runs have numbers from this one on;
#: uploaded files have lower numbers.
_RUNS_FROM = 1 << 32
#: File types whose content is text. The parsed contents of such a file are its own text. For other files the text is
#: made up.
_TEXT = frozenset({"TXT", "CSV", "XML", "HTML"})


class Files:
    """All files that Extend's API shows.

    The store does not keep the files that runs were given as a URL or as text, because they can be derived from the
    runs. For these files it records only which ones were deleted.
    """

    def __init__(self, store: Store, folder: Path, links: Links, runs: list[Run], by_id: Mapping[str, Run]) -> None:
        self._store = store
        self._folder = folder
        self._links = links
        self._runs = runs
        self._by_id = by_id
        self._uploads: dict[str, dict[str, Any]] = store.documents("file")
        self._deleted: dict[str, Any] = store.documents("deleted_file")
        self._next = 1 + max((kept["number"] for kept in self._uploads.values()), default=-1)
        folder.mkdir(parents=True, exist_ok=True)

    def name_of(self, file_id: str) -> str | None:
        """Return the name of a file by its id, or None if there is no such file."""
        found = self._summary(file_id, 0.0)
        return None if found is None else str(found["name"])

    async def upload(self, file_id: str, name: str, kind: str | None, content: BinaryIO, clock_offset: float) -> Any:
        """Store an uploaded file, and return the answer to POST /files/upload."""
        with (self._folder / file_id).open("wb") as out:
            shutil.copyfileobj(content, out)
        kept = {"name": name, "at": time.time(), "type": kind, "number": self._next}
        self._next += 1
        self._uploads[file_id] = kept
        await self._store.commit(self._store.put("file", file_id, kept))
        return render.file(self._uploaded(file_id, clock_offset), None)

    def get(self, file_id: str, shown: frozenset[str], clock_offset: float) -> dict[str, Any]:
        """Return the answer to GET /files/{id}, with the parsed contents that ``shown`` names.

        Raises ApiProblem 404.
        """
        summary = self._summary(file_id, clock_offset)
        if summary is None:
            raise not_found(f"file {file_id}")
        contents = self._contents(summary, shown) if shown and self._parsed(file_id) else None
        return render.file(summary, contents) | {"presignedUrl": self._links.make_for_file(file_id, time.time())}

    async def delete(self, file_id: str) -> None:
        """Delete a file permanently. Raises ApiProblem 404 if there is no such file."""
        if self._summary(file_id, 0.0) is None:
            raise not_found(f"file {file_id}")
        if self._uploads.pop(file_id, None) is not None:
            await self._store.commit(self._store.drop("file", file_id))
            (self._folder / file_id).unlink(missing_ok=True)
        else:
            self._deleted[file_id] = {}
            await self._store.commit(self._store.put("deleted_file", file_id, {}))

    def open_link(self, token: str) -> bytes | None:
        """Return the content of a file by its presigned URL.

        Return None if the URL is wrong or expired, or the file is deleted. The emulator never fetches a URL that a run
        was given. The content of such a file is a sentence that says so.
        """
        file_id = self._links.read_for_file(token, time.time())
        if file_id is None or self.name_of(file_id) is None:
            return None
        return self._content(file_id)

    def page(self, query: Mapping[str, str], clock_offset: float) -> dict[str, Any]:
        """Return a page for GET /files, by default with the newest files first. Raises ApiProblem."""
        size = page_size(query.get("maxPageSize"))
        direction, part = query.get("sortDir", "desc"), query.get("nameContains", "")
        if direction not in ("asc", "desc"):
            raise invalid("sortDir: asc or desc")
        rows: list[tuple[Key, dict[str, Any]]] = []
        for key, file_id in self._ordered(direction == "desc", read_cursor(query, _FILTERS)):
            summary = self._summary(file_id, clock_offset)
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
        indexes: Iterator[int]
        if down:
            end = len(self._runs) if after is None else bisect_right(self._runs, after[0], key=_created)
            indexes = iter(range(end - 1, -1, -1))
        else:
            start = 0 if after is None else bisect_left(self._runs, after[0], key=_created)
            indexes = iter(range(start, len(self._runs)))
        for index in indexes:
            run = self._runs[index]
            made = render.files_made_for(run)
            for number, file_id in sorted(made.items(), reverse=down):
                yield (run.created_at, _RUNS_FROM + run.number * _MAX_FILES_PER_RUN + number), file_id

    def _uploaded(self, file_id: str, clock_offset: float) -> dict[str, Any]:
        kept = self._uploads[file_id]
        shown = render.file_summary(file_id, kept["name"], kept["at"] + clock_offset)
        return {**shown, "type": kept["type"]} if kept["type"] else shown

    def _summary(self, file_id: str, clock_offset: float) -> dict[str, Any] | None:
        if file_id in self._uploads:
            return self._uploaded(file_id, clock_offset)
        run = self._run_of(file_id)
        if run is None or file_id in self._deleted:
            return None
        shown = render.files(run.by_clock(clock_offset))
        return next((shown[number] for number, made in render.files_made_for(run).items() if made == file_id), None)

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
        file = msgspec.json.decode(run.file) if run is not None else {}
        return str(file.get("text", "The emulator never fetches a URL.")).encode()

    def _contents(self, summary: dict[str, Any], shown: frozenset[str]) -> dict[str, Any]:
        """Return the FileContents of a file (SDK 1.20.0, types/file_contents.py).

        If the file is not text, the contents are made up.
        """
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
