"""Manifests: CSV or NDJSON, and folders, as rows that the submission service takes. Pure but for reading files."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from everyrun.extend.reserved import EXTERNAL_ID_MAX
from everyrun.submission.parse import Unreadable, csv_header_problem, csv_row

#: Extensions that Extend takes (docs.extend.ai, general/supported-file-types).
# fmt: off
EXTENSIONS = frozenset({
    "pdf", "png", "jpg", "jpeg", "tiff", "tif", "svg", "heic", "heif", "bmp", "gif", "webp", "psd", "xls", "xlsx",
    "xltm", "xltx", "ods", "docx", "doc", "wpd", "dotx", "odt", "pptx", "ppt", "ppm", "csv", "txt", "html", "xml",
    "rtf", "lis", "md", "eml", "pcx",
})
# fmt: on
#: Columns of a manifest that everyrun results writes and submit passes over.
RESULT_COLUMNS = frozenset(
    {"status", "failure_reason", "failure_message", "run_id", "batch_id", "settled_at", "input_id"}
)
_FILE_COLUMNS = ("url", "file_id", "text", "path", "name", "password", "metadata")


class ManifestError(Exception):
    """The manifest cannot be read; the text says why and what to do."""


def rows_of_csv(path: Path, id_column: str | None, metadata_columns: list[str]) -> Iterator[Any]:
    """The rows of a CSV. Other columns than Everyrun's own count only where ``metadata_columns`` names them ('*': all).

    A column ``path`` names a local file beside the manifest. Raises ManifestError.
    """
    csv.field_size_limit(16 << 20)
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file, strict=True)
        header = [name.strip() for name in next(lines, [])]
        if id_column is not None and id_column not in header:
            raise ManifestError(f"{path}: there is no column {id_column!r}; there are: {', '.join(header)}")
        missing = [name for name in metadata_columns if name != "*" and name not in header]
        if missing:
            raise ManifestError(f"{path}: there is no column {missing[0]!r}; there are: {', '.join(header)}")
        keep = _kept(header, id_column, metadata_columns)
        renamed = ["id" if name == (id_column or "id") else name for name in header]
        shown = [name for name, kept in zip(renamed, keep, strict=True) if kept and name != "path"]
        if problem := csv_header_problem([*shown, *(["url"] if "path" in header else [])]):
            raise ManifestError(f"{path}: {problem}")
        try:
            for fields in lines:
                if fields:
                    yield _row(renamed, keep, shown, fields, path.parent)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ManifestError(f"{path}, line {lines.line_num}: {error}") from None


def _kept(header: list[str], id_column: str | None, metadata_columns: list[str]) -> list[bool]:
    own = {*_FILE_COLUMNS, id_column or "id"}
    every = "*" in metadata_columns
    return [
        name in own or name in metadata_columns or (every and name not in RESULT_COLUMNS and name != "id")
        for name in header
    ]


def _row(header: list[str], keep: list[bool], shown: list[str], fields: list[str], folder: Path) -> Any:
    if len(fields) != len(header):
        return Unreadable(f"the line has {len(fields)} fields, the header {len(header)}")
    cells = [(name, value) for name, value, kept in zip(header, fields, keep, strict=True) if kept]
    row = csv_row(shown, [value for name, value in cells if name != "path"])
    local = next((value for name, value in cells if name == "path" and value), None)
    if local is not None and not isinstance(row, Unreadable):
        row["file"] = {"path": str(folder / local)}
    return row


def rows_of_ndjson(path: Path) -> Iterator[Any]:
    """A row a line; empty lines are passed over."""
    with path.open("rb") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                yield msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                yield Unreadable(f"the line is not valid JSON: {error}")


def rows_of_folder(folder: Path) -> Iterator[Any]:
    """A row for each supported file below the folder, by path; its id is the path in the folder."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.suffix.lower().lstrip(".") in EXTENSIONS and not path.name.startswith("."):
            relative = path.relative_to(folder).as_posix()
            yield {"id": id_of_path(relative), "file": {"path": str(path)}, "metadata": {"path": relative}}


def id_of_path(relative: str) -> str:
    """An external id for a path: itself, or its end and a hash where it is too long or cannot be printed."""
    if len(relative) <= EXTERNAL_ID_MAX and relative.isprintable():
        return relative
    digest = hashlib.sha256(relative.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    printable = "".join(c if c.isprintable() else "_" for c in relative)
    return f"{digest}-{printable[-(EXTERNAL_ID_MAX - 17) :]}"


def read(source: Path, id_column: str | None, metadata_columns: list[str]) -> Iterator[Any]:
    """The rows of a manifest (.csv, .ndjson or .jsonl) or a folder. Raises ManifestError."""
    if source.is_dir():
        return rows_of_folder(source)
    if not source.exists():
        raise ManifestError(f"there is no file or folder {source}")
    if source.suffix.lower() == ".csv":
        return rows_of_csv(source, id_column, metadata_columns)
    if source.suffix.lower() in (".ndjson", ".jsonl"):
        return rows_of_ndjson(source)
    raise ManifestError(f"{source} is neither a folder nor a .csv, .ndjson or .jsonl file")


def line_of(row: Any) -> bytes:
    """The row as a line of NDJSON; of one that could not be read a line that is not JSON, so that its number counts."""
    if isinstance(row, Unreadable):
        return b"!" + row.reason.encode().replace(b"\n", b" ") + b"\n"
    return msgspec.json.encode(row) + b"\n"


def row_of(line: bytes) -> Any:
    """The row of a line of :func:`line_of`; None of one that could not be read."""
    return None if line.startswith(b"!") else msgspec.json.decode(line)


def local_path(row: Any) -> Path | None:
    """The local file that a row names and that must be uploaded first."""
    file = row.get("file") if isinstance(row, dict) else None
    path = file.get("path") if isinstance(file, dict) else None
    return Path(path) if isinstance(path, str) else None
