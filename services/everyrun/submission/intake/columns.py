"""Map the columns of a CSV or Parquet manifest to the fields of a row, and escape cells for spreadsheets. Pure.

A spreadsheet evaluates every cell that begins like a formula (OWASP, "CSV Injection"). So Everyrun escapes such cells
when it exports, and removes the escapes when an exported file is submitted again.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from everyrun.submission.intake.duplicate_keys import duplicate_key
from everyrun.submission.intake.json_text import InexactError, decode, key_twice
from everyrun.submission.intake.rows import UnreadableRow
from everyrun.submission.intake.text import UploadError

#: The columns of ``everyrun results --format csv`` that show the outcome of an input.
OUTCOME_COLUMNS = ("status", "failure_reason", "failure_message", "run_id", "batch_id", "settled_at")
_FILE_COLUMNS = ("url", "file_id", "text")
_OWN_COLUMNS = ("id", *_FILE_COLUMNS, "name", "password", "metadata")
_FIELDS = {"url": "url", "file_id": "id", "text": "text", "name": "name", "path": "path"}
DELIMITERS = (",", ";", "\t")
#: Matches the start of a formula in Excel, LibreOffice and Google Sheets: an ASCII or full-width character, with any
#: number of apostrophes before it.
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
#: Matches a plain number. It is not a formula even if it begins with a minus sign, and must stay a number in the
#: spreadsheet.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


class Options(NamedTuple):
    """Options for reading a manifest. The defaults are those of an upload over HTTP."""

    encoding: str | None = None
    #: One character, or None to detect the delimiter from the header.
    delimiter: str | None = None
    id_column: str | None = None
    url_column: str | None = None
    #: The names of the columns that go into the metadata. "*" stands for all columns that have no other use.
    metadata_columns: Sequence[str] = ("*",)
    #: True on the command line. A column ``path`` then names local files, and errors name the options that help.
    local: bool = False


class Columns:
    """Says what each column of a CSV or of a Parquet file is used for.

    Everyrun's own column names are recognised in upper and lower case. ``format_name`` is the format's name in error
    messages. Raises UploadError if the header cannot be used.
    """

    def __init__(self, header: Sequence[str], options: Options, format_name: str = "CSV") -> None:
        self._format = format_name
        #: True if the CSV was exported by ``everyrun results``, so its cells are escaped.
        self.exported = set(OUTCOME_COLUMNS) <= {name.strip() for name in header}
        self.header = [(unescape(name) if self.exported else name).strip() for name in header]
        self._local = options.local
        outcome = [name for name in OUTCOME_COLUMNS if name in self.header]
        #: The missing outcome columns, if the CSV has at least two of them but not all. It was then probably exported
        #: and edited. A single such column proves nothing: any CSV may have a column ``status``.
        self.missing_outcome = (
            [name for name in OUTCOME_COLUMNS if name not in outcome] if len(outcome) > 1 and not self.exported else []
        )
        #: Number of cells that look escaped although the CSV does not have all outcome columns, and the first such
        #: cell.
        self.escaped_count, self.escaped_cell = 0, ""
        #: For each of Everyrun's own column names that the CSV has, the index of that column.
        self.indexes: dict[str, int] = {}
        chosen = {"id": options.id_column, "url": options.url_column}
        for column in (*_OWN_COLUMNS, *(["path"] if options.local else [])):
            wanted = chosen.get(column)
            index = self._index(wanted or column, needed=wanted is not None)
            if index is not None:
                self.indexes[column] = index
        self._need_file()
        self._set_metadata(options.metadata_columns)

    def _index(self, wanted: str, needed: bool) -> int | None:
        exact = [index for index, name in enumerate(self.header) if name == wanted]
        found = exact or [index for index, name in enumerate(self.header) if name.casefold() == wanted.casefold()]
        if len(found) > 1:
            raise UploadError(f"the {self._format} has the column {self.header[found[1]]!r} twice; rename one of them")
        if not exact and not found and needed:
            raise UploadError(f"there is no column {wanted!r}; {self._column_list()}")
        # Refuse another column whose name differs only in case: it would be ignored silently.
        others = [name for index, name in enumerate(self.header) if index not in found]
        if found and not needed and any(name.casefold() == wanted.casefold() for name in others):
            raise UploadError(
                f"the {self._format} has the column {wanted!r} twice, in different case; rename one of them"
            )
        return found[0] if found else None

    def _column_list(self) -> str:
        return "the columns are: " + ", ".join(name or "(no name)" for name in self.header)

    def _need_file(self) -> None:
        files = (*_FILE_COLUMNS, "path") if self._local else _FILE_COLUMNS
        if not any(name in self.indexes for name in files):
            remedy = ", or name the column of the links with --url-column" if self._local else ""
            if self._local and len(self.header) == 1 and self._format == "CSV":
                remedy += ". If another character separates the columns, name it with --delimiter"
            raise UploadError(
                f"the {self._format} has no column for the file: name one of its columns {', '.join(files)}{remedy}; "
                f"{self._column_list()}"
            )

    def _set_metadata(self, wanted: Sequence[str]) -> None:
        used = set(self.indexes.values())
        # The outcome of an earlier submission does not belong in the metadata of a new one.
        outcome = {self.header.index(name) for name in OUTCOME_COLUMNS} if self.exported else set()
        self._unnamed = [index for index, name in enumerate(self.header) if not name]
        named = {self._index(name, needed=True) for name in wanted if name != "*"}
        rest = set(range(len(self.header))) - used - outcome - set(self._unnamed)
        keep = {index for index in named if index is not None} | (rest if "*" in wanted else set())
        #: The index and the name of each column that goes into the metadata.
        self.metadata = [(index, self.header[index]) for index in sorted(keep)]
        for index, name in self.metadata:
            if self.header.index(name) != index:
                raise UploadError(f"the {self._format} has the column {name!r} twice; rename one of them")
        #: The names of the columns that are not used at all.
        self.ignored = [self.header[index] for index in sorted(rest - keep)]

    @property
    def ids_from(self) -> str | None:
        """The name of the column that holds the ids."""
        return self.header[self.indexes["id"]] if "id" in self.indexes else None

    def row(self, fields: Sequence[str]) -> Any:
        """Return a record of the CSV as a row, or UnreadableRow if it cannot be read as one.

        The column ``id`` holds the id of the input. The file is in one of the columns ``url``, ``file_id`` and
        ``text``; the columns ``name`` and ``password`` can add to it. The column ``metadata`` holds a JSON object.
        Every other column becomes a text in the metadata, under the name of the column, even if the field is empty. An
        empty field in one of Everyrun's own columns, which are named above, counts as missing.
        """
        if len(fields) != len(self.header):
            return UnreadableRow(
                f"the line has {len(fields)} fields, the header {len(self.header)}; "
                "put a field that contains the delimiter in double quotes"
            )
        if self.exported:
            fields = [unescape(field) for field in fields]
        else:
            for field in fields:
                if field.startswith("'") and unescape(field) != field:
                    self.escaped_count += 1
                    self.escaped_cell = self.escaped_cell or field
        own = {name: fields[index] for name, index in self.indexes.items() if fields[index] != ""}
        for index in self._unnamed:
            if fields[index] != "":
                return UnreadableRow(f"field {index + 1} has a value, but its column has no name", id=own.get("id"))
        return self._row(own, {name: fields[index] for index, name in self.metadata})

    def typed_row(self, values: Sequence[Any]) -> Any:
        """Return a row of a Parquet file, given its values as JSON types, or UnreadableRow if it cannot be read as one.

        The columns have the same meaning as in :meth:`row`. In Everyrun's own columns, null and empty text count as
        missing, a whole number is accepted as an id, and ``metadata`` may be a struct or map instead of JSON text.
        Every other column goes into the metadata with the type of its value.
        """
        own = {name: values[index] for name, index in self.indexes.items() if values[index] not in (None, "")}
        if type(own.get("id")) is int:
            own["id"] = str(own["id"])
        return self._row(own, {name: values[index] for index, name in self.metadata})

    def _row(self, own: dict[str, Any], others: dict[str, Any]) -> Any:
        """Return the row with these values in Everyrun's own columns, and these in the columns for the metadata."""
        identifier = own["id"] if isinstance(own.get("id"), str) else None
        file: dict[str, Any] = {field: own[column] for column, field in _FIELDS.items() if column in own}
        if "password" in own:
            file["settings"] = {"password": own["password"]}
        metadata = own.get("metadata", {})
        if isinstance(metadata, str):
            try:
                text, metadata = metadata, decode(metadata)
                twice = duplicate_key(text.encode("utf-8", "surrogateescape"), metadata)
            except (msgspec.DecodeError, RecursionError, UnicodeError, InexactError) as error:
                return UnreadableRow(f"is not valid JSON: {error}", "metadata", identifier)
            if twice is not None:
                return UnreadableRow(key_twice(twice[1]), "metadata", identifier)
        if others and isinstance(metadata, dict):
            if both := metadata.keys() & others.keys():
                reason = f"has the key {min(both)!r}, which is also the name of a column"
                return UnreadableRow(reason, "metadata", identifier)
            metadata = {**metadata, **others}
        row: dict[str, Any] = {"file": file, "metadata": metadata}
        return {"id": own["id"], **row} if "id" in own else row


def delimiter_of(line: str, options: Options) -> str:
    """Return the delimiter: the chosen one, or the one that splits the header into the most known column names."""
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


def escape(cell: str) -> str:
    """Return the cell, with an apostrophe in front if a spreadsheet would evaluate it as a formula.

    A cell that already has apostrophes in front of a formula gets one more, so that :func:`unescape` restores every
    text exactly.
    """
    return "'" + cell if _is_formula(cell) else cell


def unescape(cell: str) -> str:
    """Return the text that :func:`escape` was given."""
    return cell[1:] if cell.startswith("'") and _is_formula(cell[1:]) else cell


def csv_line(cells: Iterable[str]) -> str:
    """Return one line of a CSV, with escaped cells and a line feed at the end."""
    written = io.StringIO()
    # With this line terminator, the writer also quotes a cell that contains a carriage return.
    csv.writer(written, lineterminator="\r\n").writerow(map(escape, cells))
    return written.getvalue()[:-2] + "\n"


def _is_formula(cell: str) -> bool:
    return _FORMULA.match(cell) is not None and _NUMBER.fullmatch(cell) is None
