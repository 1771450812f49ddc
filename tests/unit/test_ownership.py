"""store/ownership.py declares who reads and writes each table; here it is compared with the statements in the code."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from pathlib import Path

from everyrun.store.migrate import SCHEMAS
from everyrun.store.ownership import PARTS, TABLES

PACKAGE = Path(__file__).parents[2] / "services" / "everyrun"

_WRITES = r"insert into|update|delete from|truncate"
_STATEMENT = re.compile(rf"\b({_WRITES}|from|join|lock table)\s+(?:only\s+)?((?:everyrun\w*\.)?\w+)", re.IGNORECASE)
_DEFINITION = re.compile(
    r"^create (?:unlogged )?(?:table|view|function) (?:(\w+)\.)?(\w+)(?:\(.*\) returns trigger)?", re.MULTILINE
)
#: Rows that are copied, not inserted: COPY is called by a method of the driver, which names the table in Python.
_COPIED = {
    "everyrun_queue.inputs": "submission",
    "everyrun_index.places": "replay",
    "everyrun_index.batch_places": "replay",
}


def defined() -> set[str]:
    """Return every table, view and function that a migration makes, without the functions of triggers."""
    found = set()
    for schema, folder in SCHEMAS.items():
        for file in folder.glob("*.sql"):
            for match in _DEFINITION.finditer(file.read_text()):
                if "returns trigger" not in match[0]:
                    found.add(f"{match[1] or schema}.{match[2]}")
    return found


@functools.cache
def used() -> dict[str, tuple[set[str], set[str]]]:
    """Return for each table the parts of the code whose statements write it, and those that read it."""
    known, writers, readers = defined(), defaultdict(set), defaultdict(set)
    for file in (*PACKAGE.rglob("*.sql"), *PACKAGE.rglob("*.py")):
        part = file.relative_to(PACKAGE).parts[0]
        if "migrations" in file.parts or part.endswith(".py"):
            continue
        text = re.sub(r"--.*", "", file.read_text()) if file.suffix == ".sql" else file.read_text()
        for match in _STATEMENT.finditer(text):
            name = match[2]
            # The projection and replay choose a schema by the search path, and name only tables.
            if "." not in name and file.suffix == ".sql" and part in ("projection", "replay"):
                name = f"everyrun.{name}"
            if name in known:
                of = writers if re.fullmatch(_WRITES, match[1], re.IGNORECASE) else readers
                of[name].add(part)
    for name, part in _COPIED.items():
        writers[name].add(part)
    return {name: (writers[name], readers[name]) for name in known}


def test_every_table_is_declared() -> None:
    assert defined() == set(TABLES)


def test_every_part_is_described() -> None:
    named = {table.owner for table in TABLES.values()}
    named |= {part for table in TABLES.values() for part in table.readers}
    named |= {part for table in TABLES.values() for part, _ in table.other_writers}
    assert named == set(PARTS)


def test_only_the_declared_parts_write_a_table() -> None:
    for name, table in TABLES.items():
        writers, _ = used()[name]
        assert writers - {table.owner} == {part for part, _ in table.other_writers}, name


def test_only_the_declared_parts_read_a_table() -> None:
    for name, table in TABLES.items():
        _, readers = used()[name]
        assert readers - {table.owner} == set(table.readers), name


def test_services_write_no_table_of_the_projection() -> None:
    for name, (writers, _) in used().items():
        if name.startswith("everyrun."):
            assert writers <= {"projection", "doctor"}, name
