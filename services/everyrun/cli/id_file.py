"""Read the file of an option ``--ids``: one id on each line."""

from __future__ import annotations

import sys
from pathlib import Path

from everyrun.cli import exits
from everyrun.cli.console import fail


def read_ids(file: Path) -> list[str]:
    """Return the ids in a file, or on standard input if its name is ``-``. Ends the command if there are none."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{file}: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}", exits.USAGE)
    found = [line for line in text.splitlines() if line.strip()]
    if not found:
        fail(f"{file}: it has no ids; it must have one id on each line", exits.USAGE)
    return found
