"""Statements have parameters; none is built from values."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

SERVICES = Path(__file__).parents[2] / "services" / "everyrun"
_SQL = re.compile(
    r"^\s*(select\b.+\bfrom|insert\s+into|update\s+\S+\s+set|delete\s+from|(create|drop|alter|truncate)\s+"
    r"(table|schema|database|index|view|role|temp|temporary|unlogged)|copy\s+\S+\s+(from|to)|set\s+search_path|lock\s+table)\b",
    re.IGNORECASE | re.DOTALL,
)
#: Identifiers cannot be parameters. By module: inserted names that are fixed, or checked first.
_NAMES = {
    ("embedded/postgres.py", "OWNER"),
    # The schema of a rebuild, which is checked: lower case, digits and _.
    ("replay/rebuild/rebuild_schema.py", "self.name"),
    ("replay/rebuild/rebuild_schema.py", "self.name, table"),
    ("replay/rebuild/swap.py", "BEFORE"),
    ("replay/rebuild/swap.py", "LIVE, BEFORE"),
    ("replay/rebuild/swap.py", "rebuilt.name, LIVE"),
}


def _text(node: ast.AST) -> str:
    """Return the text of a string expression, with ``{}`` for inserted values."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return "{}"


def made_of_values(source: str) -> list[tuple[int, str]]:
    """Return line and inserted values of each SQL text that is an f-string, a sum, a format or a %."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            text, put_in = _text(node), [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
            text, put_in = _text(node.left), [node.right]
        elif (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("format", "join")
        ):
            text, put_in = _text(node.func.value), list(node.args)
        else:
            continue
        if put_in and _SQL.search(text):
            found.append((node.lineno, ", ".join(ast.unparse(value) for value in put_in)))
    return found


def test_no_sql_is_assembled_from_values() -> None:
    """Pass values as $1, $2. List a name that must be inserted in _NAMES, once it is checked."""
    found = []
    for module in sorted(SERVICES.rglob("*.py")):
        name = module.relative_to(SERVICES).as_posix()
        found += [(name, *made) for made in made_of_values(module.read_text()) if (name, made[1]) not in _NAMES]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "c.fetch(f'select a from b where c = {d}')",
        "c.execute('delete from b where c = ' + d)",
        "c.execute('insert into b values (%s)' % d)",
        "c.execute('update b set c = {}'.format(d))",
        "c.execute(f'''\n  drop schema {d} cascade''')",
    ],
)
def test_the_check_finds_assembled_sql(line: str) -> None:
    assert len(made_of_values(line)) == 1
