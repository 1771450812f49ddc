"""The columns of a CSV: which of them says what, and a record as a row. Pure."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from everyrun.submission.intake.cells import unescape
from everyrun.submission.intake.numbers import InexactError, decode
from everyrun.submission.intake.rows import Unreadable
from everyrun.submission.intake.text import UploadError

#: Columns of what ``everyrun results --format csv`` writes that say what became of an input.
OUTCOME_COLUMNS = ("status", "failure_reason", "failure_message", "run_id", "batch_id", "settled_at")
_FILE_COLUMNS = ("url", "file_id", "text")
_OWN_COLUMNS = ("id", *_FILE_COLUMNS, "name", "password", "metadata")
_FIELDS = {"url": "url", "file_id": "id", "text": "text", "name": "name", "path": "path"}
DELIMITERS = (",", ";", "\t")


class Options(NamedTuple):
    """How a manifest is read. Without any, as over HTTP."""

    encoding: str | None = None
    #: One character; recognised by the header where it is None.
    delimiter: str | None = None
    id_column: str | None = None
    url_column: str | None = None
    #: The columns that go into the metadata; "*" stands for all that have no other use.
    metadata_columns: Sequence[str] = ("*",)
    #: On a command line: a column ``path`` names local files, and errors name the options that help.
    local: bool = False


class Columns:
    """What each column of a CSV is for.

    Everyrun's own names are recognised in capitals too. Raises UploadError if the header cannot be used.
    """

    def __init__(self, header: Sequence[str], options: Options) -> None:
        #: Results as they were exported: cells that a spreadsheet would run as formulas are escaped.
        self.exported = set(OUTCOME_COLUMNS) <= {name.strip() for name in header}
        self.header = [(unescape(name) if self.exported else name).strip() for name in header]
        self._local = options.local
        #: By own column, its place.
        self.places: dict[str, int] = {}
        chosen = {"id": options.id_column, "url": options.url_column}
        for column in (*_OWN_COLUMNS, *(["path"] if options.local else [])):
            wanted = chosen.get(column)
            place = self._place(wanted or column, needed=wanted is not None)
            if place is not None:
                self.places[column] = place
        self._need_file()
        self._set_metadata(options.metadata_columns)

    def _place(self, wanted: str, needed: bool) -> int | None:
        exact = [place for place, name in enumerate(self.header) if name == wanted]
        found = exact or [place for place, name in enumerate(self.header) if name.casefold() == wanted.casefold()]
        if len(found) > 1:
            raise UploadError(f"the CSV has the column {self.header[found[1]]!r} twice; give one of them another name")
        if not exact and not found and needed:
            raise UploadError(f"there is no column {wanted!r}; {self._there_are()}")
        # Another spelling of the same name beside it would be passed over without a word.
        others = [name for place, name in enumerate(self.header) if place not in found]
        if found and not needed and any(name.casefold() == wanted.casefold() for name in others):
            raise UploadError(f"the CSV has the column {wanted!r} twice, in capitals and not; rename one of them")
        return found[0] if found else None

    def _there_are(self) -> str:
        return "there are: " + ", ".join(name or "(no name)" for name in self.header)

    def _need_file(self) -> None:
        files = (*_FILE_COLUMNS, "path") if self._local else _FILE_COLUMNS
        if not any(name in self.places for name in files):
            remedy = "; with --url-column NAME any column can hold the links" if self._local else ""
            raise UploadError(
                f"the CSV has no column for the file: name one of them {', '.join(files)}{remedy}; {self._there_are()}"
            )

    def _set_metadata(self, wanted: Sequence[str]) -> None:
        used = set(self.places.values())
        outcome = set()
        if self.exported:
            # What became of the inputs says nothing of how to submit them again.
            outcome = {self.header.index(name) for name in OUTCOME_COLUMNS}
        self._unnamed = [place for place, name in enumerate(self.header) if not name]
        named = {self._place(name, needed=True) for name in wanted if name != "*"}
        rest = set(range(len(self.header))) - used - outcome - set(self._unnamed)
        keep = {place for place in named if place is not None} | (rest if "*" in wanted else set())
        #: The columns that go into the metadata, as place and name.
        self.metadata = [(place, self.header[place]) for place in sorted(keep)]
        for place, name in self.metadata:
            if self.header.index(name) != place:
                raise UploadError(f"the CSV has the column {name!r} twice; give one of them another name")
        #: The columns that are left out.
        self.ignored = [self.header[place] for place in sorted(rest - keep)]

    @property
    def ids_from(self) -> str | None:
        """The name of the column that the ids come from."""
        return self.header[self.places["id"]] if "id" in self.places else None

    def row(self, fields: Sequence[str]) -> Any:
        """Return a record as a ROW, or Unreadable.

        Columns: ``id``; ``url``, ``file_id`` or ``text`` for the file, with ``name`` and ``password``; ``metadata``
        holds a JSON object; every other column becomes a text in the metadata under its name. An empty field is left
        out.
        """
        if len(fields) != len(self.header):
            return Unreadable(
                f"the line has {len(fields)} fields, the header {len(self.header)}; "
                "a field that holds the delimiter must stand in double quotes"
            )
        if self.exported:
            fields = [unescape(field) for field in fields]
        own = {name: fields[place] for name, place in self.places.items() if fields[place] != ""}
        for place in self._unnamed:
            if fields[place] != "":
                return Unreadable(f"field {place + 1} holds a value, but its column has no name", id=own.get("id"))
        file: dict[str, Any] = {field: own[column] for column, field in _FIELDS.items() if column in own}
        if "password" in own:
            file["settings"] = {"password": own["password"]}
        metadata: Any = {}
        if "metadata" in own:
            try:
                metadata = decode(own["metadata"])
            except (msgspec.DecodeError, RecursionError, UnicodeError, InexactError) as error:
                return Unreadable(f"is not valid JSON: {error}", "metadata", own.get("id"))
        others = {name: fields[place] for place, name in self.metadata if fields[place] != ""}
        if others and isinstance(metadata, dict):
            if both := metadata.keys() & others.keys():
                reason = f"has the key {min(both)!r}, which is a column too"
                return Unreadable(reason, "metadata", own.get("id"))
            metadata = {**metadata, **others}
        row: dict[str, Any] = {"file": file, "metadata": metadata}
        return {"id": own["id"], **row} if "id" in own else row


def delimiter_of(line: str, options: Options) -> str:
    """Return what separates the fields of a header: the delimiter by which it has the most columns that are known."""
    if options.delimiter:
        return options.delimiter
    known = {*_OWN_COLUMNS, "path", options.id_column, options.url_column, *options.metadata_columns}
    folded = {name.casefold() for name in known if name}

    def score(delimiter: str) -> tuple[int, int]:
        try:
            names = next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error:
            return (0, 0)
        return sum(name.strip().casefold() in folded for name in names), len(names)

    return max(DELIMITERS, key=score)
