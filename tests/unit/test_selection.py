"""Selections of events."""

from __future__ import annotations

import pytest

from everyrun.replay.errors import SelectionError
from everyrun.replay.export.selection import parse_offsets


def test_parse_offsets() -> None:
    assert parse_offsets("runs:0=400, batches:1=2..9") == {("runs", 0): (400, None), ("batches", 1): (2, 9)}
    for wrong in ("runs", "runs:0", "runs:0=x", "walks:0=1"):
        with pytest.raises(SelectionError):
            parse_offsets(wrong)
