"""Check every row and every file of a manifest or folder before anything is sent.

This module has over 300 lines, because manifests, folders and buckets all become rows that the same class checks.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from everyrun import objects
from everyrun.cli import folder
from everyrun.cli.console import counted
from everyrun.cli.contents import EXTENSIONS
from everyrun.cli.folder import shown
from everyrun.errors import Invalid
from everyrun.submission.chunks import Cutter
from everyrun.submission.ids import new_submission_id
from everyrun.submission.intake.columns import DELIMITERS, OUTCOME_COLUMNS, Columns, Options
from everyrun.submission.intake.parse import CSV, JSON, NDJSON, PARQUET, Row, RowReader, spool
from everyrun.submission.intake.rows import FILE_FIELDS, BadRow, GoodRow, check_row, duplicate_id
from everyrun.submission.intake.text import EncodingError, UploadError

# fmt: off
KINDS = {
    ".csv": CSV, ".tsv": CSV, ".ndjson": NDJSON, ".jsonl": NDJSON, ".json": JSON, ".parquet": PARQUET, ".pq": PARQUET,
}
# fmt: on
#: The formats of a manifest on standard input, by their names on the command line.
FORMATS = {"csv": CSV, "ndjson": NDJSON, "json": JSON, "parquet": PARQUET}
#: The source that stands for standard input.
STDIN = "-"
_DELIMITER_NAMES = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}
#: The services' default limits: bytes of a row, inputs of a chunk, and bytes of a chunk.
ROW_MAX, CHUNK_INPUTS, CHUNK_BYTES = 900_000, 1000, 900_000
#: Maximum number of bad rows that are kept and shown.
SHOWN = 20
#: Stands for a row's file until the file is uploaded; then Extend's file id replaces this URL. The URL is at least as
#: long as such an id, so the row cannot outgrow the size limit that was checked.
_TO_BE_UPLOADED = "https://to-be-uploaded.example.com/"


if TYPE_CHECKING:
    from everyrun.cli.bucket import BucketObject


class ManifestError(Invalid):
    """The manifest cannot be read; the message says why and what to do.

    ``checked`` holds the rows that were read before the error.
    """

    def __init__(self, message: str, checked: Checked | None = None) -> None:
        super().__init__(message)
        self.checked = checked


class Local(NamedTuple):
    """A local file that a row names. It is uploaded before the row is sent."""

    path: Path
    #: The file's name at Extend.
    name: str
    password: str | None


class Checked:
    """The checked rows of a manifest or folder, and the local files that they name.

    Good rows are stored in a file; of the bad rows, the first SHOWN are kept in ``bad``.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.count = 0
        self.batches = 0
        self.bad_count = 0
        self.bad: list[BadRow] = []
        self.files: list[Local] = []
        #: The address of the first object in a bucket that a good row names.
        self.object: str | None = None
        #: The first good row, in the form in which the user sees it.
        self.first: dict[str, Any] | None = None
        self._lines = array("q")

    def line_of(self, row: int) -> int | None:
        """Return the line on which a row begins; None for a document of a folder, which has no line."""
        return self._lines[row - 1] if 0 < row <= len(self._lines) and self._lines[row - 1] else None

    def check(self, rows: Iterable[Row], base: Path | None) -> None:
        """Check every row. Raises UploadError.

        Relative paths of local files are relative to ``base``. If ``base`` is None, rows may not name paths.
        """
        submission_id, cutter = new_submission_id(), Cutter(CHUNK_INPUTS, CHUNK_BYTES)
        seen: dict[str, int] = {}
        places: dict[Local, int] = {}
        for line, value in rows:
            self.count += 1
            self._lines.append(line)
            shown_line = line or None
            found = self._local(shown_line, value, base)
            if isinstance(found, BadRow):
                self._refuse(found)
                continue
            given, local = found
            checked = check_row(self.count, given, submission_id, ROW_MAX, shown_line)
            if isinstance(checked, BadRow):
                self._refuse(checked)
                continue
            if (first := seen.setdefault(checked.external_id, self.count)) != self.count:
                self._refuse(duplicate_id(self.count, checked.external_id, first, shown_line))
                continue
            cutter.add(checked.size)
            if local is not None:
                place = places.setdefault(local, len(places))
                if place == len(self.files):
                    self.files.append(local)
                value = {**given, "file": place}
            if self.first is None:
                self.first = _as_read(checked, local)
            if self.object is None and checked.file.startswith(b'{"object":'):
                self.object = msgspec.json.decode(checked.file)["object"]
            self._file.write(msgspec.json.encode(value) + b"\n")
        self.batches = len(cutter.finish())

    def _refuse(self, bad: BadRow) -> None:
        self.bad_count += 1
        if len(self.bad) < SHOWN:
            self.bad.append(bad)

    def _local(self, line: int | None, value: Any, base: Path | None) -> tuple[Any, Local | None] | BadRow:
        """Return the row to check and the local file that the row names, if any. If the file is bad, return a BadRow.

        The path is added to the metadata, because Extend knows the file only by an id. If the metadata already
        contain a ``path``, they are not changed.
        """
        file = value.get("file") if isinstance(value, dict) else None
        if isinstance(file, Local):
            return {**value, "file": {"url": _TO_BE_UPLOADED}}, file
        if not isinstance(file, dict) or "path" not in file:
            return value, None
        identifier = value.get("id") if isinstance(value.get("id"), str) else None

        def bad(field: str, reason: str) -> BadRow:
            return BadRow(self.count, identifier, field, reason, line)

        path = file["path"]
        if base is None:
            return bad("file.path", "is a local file: name the files as they were sent, by url, file_id or text")
        if others := sorted(file.keys() & FILE_FIELDS.keys()):
            return bad("file", f"needs exactly one of url, id, text, object and path; it has path, {', '.join(others)}")
        if unknown := sorted(file.keys() - {"path", "name", "settings"}):
            return bad(f"file.{unknown[0]}", "unknown beside path; allowed: name, settings")
        if not isinstance(path, str) or not path:
            return bad("file.path", "must be text that is not empty")
        if problem := unreadable(base / path):
            return bad("file.path", f"{shown(base / path)}: {problem}")
        rest = {name: part for name, part in file.items() if name != "path"}
        name, settings = rest.get("name"), rest.get("settings")
        password = settings.get("password") if isinstance(settings, dict) else None
        local = Local(
            base / path,
            name if isinstance(name, str) and name else shown(Path(path).name),
            password if isinstance(password, str) and password else None,
        )
        metadata = {} if value.get("metadata") is None else value["metadata"]
        if isinstance(metadata, dict):
            metadata = {"path": path, **metadata}
        return {**value, "file": {"url": _TO_BE_UPLOADED, **rest}, "metadata": metadata}, local

    def write(self, ids: Sequence[str], file: IO[bytes]) -> None:
        """Write the good rows as NDJSON. Each local file is replaced by its id at Extend.

        ``ids`` are the ids of the uploaded files, in the order of ``files``.
        """
        self._file.seek(0)
        for line in self._file:
            if self.files:
                row = msgspec.json.decode(line)
                if isinstance(row["file"], int):
                    row["file"] = {"id": ids[row["file"]]}
                    line = msgspec.json.encode(row) + b"\n"
            file.write(line)


def _as_read(row: GoodRow, local: Local | None) -> dict[str, Any]:
    """Return a row as the user sees it: a local file appears with its path, and a password as ***."""
    file: dict[str, Any] = msgspec.json.decode(row.file)
    if local is not None:
        file = {"path": shown(local.path), "name": local.name} | ({"settings": {}} if local.password else {})
    if "settings" in file:
        file["settings"] = {"password": "***"}
    return {"id": row.external_id, "file": file, "metadata": msgspec.json.decode(row.metadata)}


def unreadable(path: Path) -> str | None:
    """Return the reason why a file cannot be uploaded, or None if it can be."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "is not a file"
        with path.open("rb") as file:
            return None if file.read(1) else "the file is empty"
    except FileNotFoundError:
        if "\\" in str(path):
            return f"there is no such file; write a path with slashes: {shown(path).replace(chr(92), '/')}"
        return "there is no such file"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)


Source = Literal["manifest", "folder", "bucket"]


def source_kind(source: str) -> Source:
    """Return what a source is. Raises ManifestError if it is neither a manifest, nor a folder, nor a bucket's URL."""
    if objects.is_address(source):
        return "bucket"
    return "folder" if is_folder(source) else "manifest"


def is_folder(source: str) -> bool:
    """Return True if the source is a folder, False if it is a manifest. Raises ManifestError if it is neither."""
    if source == STDIN:
        return False
    if not source:
        raise ManifestError("the name of the manifest or folder is empty")
    try:
        mode = os.stat(source).st_mode
    except FileNotFoundError:
        raise ManifestError(f"there is no file or folder {shown(source)}") from None
    except (OSError, ValueError) as error:
        raise ManifestError(f"{shown(source)}: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(mode):
        return True
    if not stat.S_ISREG(mode):
        raise ManifestError(f"{shown(source)} is neither a folder nor a regular file")
    if Path(source).suffix.lower() not in KINDS:
        raise ManifestError(f"{shown(source)} is no manifest: {_way_out(Path(source))}")
    return False


def _way_out(path: Path) -> str:
    """Return advice about a file whose name is not that of a manifest."""
    suffix, named = path.suffix.lower(), f"a manifest is named {', '.join(KINDS)}"
    if suffix in (".xlsx", ".xlsm", ".xls", ".ods", ".numbers"):
        return 'it is a spreadsheet. Save it as "CSV UTF-8" and submit that file'
    if suffix in (".txt", ""):
        return f"{named}. If it is a table (Excel's Unicode Text), rename it to {shown(path.stem)}.csv"
    if suffix[1:] in EXTENSIONS:
        command = shlex.join(["everyrun", "submit", shown(path.parent), "--include", shown(path.name)])
        return f"{named}. To send one document, name its folder: {command}"
    return named


def delimiter(given: str | None) -> str | None:
    """Return the character that ``--delimiter`` stands for. Raises ManifestError."""
    if given is None:
        return None
    character = _DELIMITER_NAMES.get(given.lower(), given)
    if len(character) != 1 or character in '"\r\n' or not (character in DELIMITERS or character.isprintable()):
        raise ManifestError(f"--delimiter {shown(given)!r}: must be one character, or tab")
    return character


class Manifest(NamedTuple):
    """A manifest that was checked."""

    checked: Checked
    #: The column that holds the ids. None if the rows' numbers are the ids, or if the manifest has no columns.
    ids_from: str | None
    #: The columns that are left out. None if the manifest has no columns, because it is JSON or NDJSON.
    ignored: list[str] | None
    #: Sentences about what may be wrong with the manifest, although it can be submitted.
    warnings: list[str]


def read(source: str, options: Options, file: IO[bytes], local: bool = True, format_: str | None = None) -> Manifest:
    """Check every row of a manifest and store the good rows in ``file``. Raises ManifestError.

    If ``local`` is False, rows may not name local files. If the source is standard input, ``format_`` names its format,
    and paths in it are relative to the current folder.
    """
    path = Path(source)
    checked = Checked(file)
    try:
        with _opened(source) as opened:
            kind = KINDS[path.suffix.lower()] if format_ is None else FORMATS[format_]
            reading = RowReader(kind, opened, options)
            base = Path() if source == STDIN else path.parent
            checked.check(reading, base if local else None)
    except EncodingError as error:
        remedy = "" if error.named else " with --encoding, for example: --encoding windows-1252"
        raise ManifestError(f"{named(source)}: {error}{remedy}", checked) from None
    except UploadError as error:
        raise ManifestError(f"{named(source)}: {error}", checked) from None
    except OSError as error:
        raise ManifestError(f"{shown(error.filename or named(source))}: {error.strerror or error}") from None
    columns = reading.columns
    if columns is None:
        return Manifest(checked, None, None, [])
    return Manifest(checked, columns.ids_from, columns.ignored, _warnings(columns))


def named(source: str) -> str:
    """Return the source as messages name it."""
    return "standard input" if source == STDIN else shown(source)


def _opened(source: str) -> IO[bytes]:
    """Open a manifest. Standard input is first copied to a temporary file, because the formats need to seek."""
    if source != STDIN:
        return open(source, "rb")
    file = spool()
    shutil.copyfileobj(sys.stdin.buffer, file)
    file.seek(0)
    return file


def _warnings(columns: Columns) -> list[str]:
    """Return a warning if a CSV looks like output of ``everyrun results`` that lacks columns about the outcome.

    In such a CSV, the apostrophes before formulas are not removed.
    """
    found = []
    if columns.missing_outcome:
        found.append(f"it has some columns of results, but not {', '.join(columns.missing_outcome)}")
    if columns.escaped_count:
        cells = counted(columns.escaped_count, "cell begins", "cells begin")
        found.append(f"{cells} with an apostrophe before a formula, such as {columns.escaped_cell[:40]}")
    if not found:
        return []
    remedy = (
        "Apostrophes that everyrun results puts before formulas are removed only if all columns about the outcome are "
        f"present: {', '.join(OUTCOME_COLUMNS)}. Here every apostrophe is kept"
    )
    return [f"{' and '.join(found)}. {remedy}"]


def check_documents(documents: Iterable[folder.Document], file: IO[bytes]) -> Checked:
    """Check the documents of a folder, each as one row, and store the good rows in ``file``."""
    checked = Checked(file)
    checked.check(_rows(documents), None)
    return checked


def _rows(documents: Iterable[folder.Document]) -> Iterator[Row]:
    for document in documents:
        local = Local(document.path, document.name, None)
        yield 0, {"id": document.id, "file": local, "metadata": {"path": document.shown}}


def check_objects(found: Iterable[BucketObject], file: IO[bytes]) -> Checked:
    """Check the objects of a bucket, each as one row, and store the good rows in ``file``."""
    checked = Checked(file)
    checked.check(((0, object_row(one)) for one in found), None)
    return checked


def object_row(found: BucketObject) -> dict[str, Any]:
    """Return the row for an object of a bucket."""
    file = {"object": str(found.address)} | ({"etag": found.etag} if found.etag else {})
    return {"id": found.id, "file": file, "metadata": {"path": found.relative}}
