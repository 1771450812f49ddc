"""The projection's migrations work in any schema."""

from __future__ import annotations

import re

from everyrun.store.migrate import SCHEMAS


def test_migrations_of_the_result_tables_name_no_schema():
    for path in SCHEMAS["everyrun"].glob("*.sql"):
        assert not re.findall(r"\beveryrun\.\w+", path.read_text()), path
