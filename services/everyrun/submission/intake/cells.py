"""Cells of a CSV that spreadsheets would run as formulas: written so that they stay text, and read back. Pure."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable

#: What Excel, LibreOffice and Google Sheets begin a formula with (OWASP, "CSV Injection"), also in full width.
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
#: A number is only a number, and stays one that can be added up.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def escape(cell: str) -> str:
    """Return the cell as it may be opened in a spreadsheet: with an apostrophe before what would be a formula.

    A text that begins with apostrophes before a formula gets one more, so that :func:`unescape` gives back every text.
    """
    return "'" + cell if _is_formula(cell) else cell


def unescape(cell: str) -> str:
    """Return the text that :func:`escape` was given."""
    return cell[1:] if cell.startswith("'") and _is_formula(cell[1:]) else cell


def line(cells: Iterable[str]) -> str:
    """Return the line of a CSV that has the cells, each escaped. Ends in a line feed."""
    written = io.StringIO()
    # By this line end a carriage return in a cell is quoted too.
    csv.writer(written, lineterminator="\r\n").writerow(map(escape, cells))
    return written.getvalue()[:-2] + "\n"


def _is_formula(cell: str) -> bool:
    return _FORMULA.match(cell) is not None and _NUMBER.fullmatch(cell) is None
