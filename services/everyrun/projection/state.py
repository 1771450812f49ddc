"""The row of an input as one application of records leaves it, for the tables and for publishing."""

from __future__ import annotations

from typing import Any, NamedTuple

from everyrun.projection.rules.merge import SETTLED
from everyrun.projection.rules.run_selection import Decision, Row, home_of
from everyrun.projection.tables import run_values


class State(NamedTuple):
    """What is known of an input, and the decision by which a run stands for it; without one, none does.

    ``reason`` and ``message`` say why an input without a run was refused.
    """

    row: Row
    reason: str | None = None
    message: str | None = None
    decision: Decision | None = None

    @property
    def version(self) -> str:
        """The row's version."""
        return self.row.version if self.decision is None else self.decision.version

    @property
    def run(self) -> bytes | None:
        """The standing run's text; None where there is none."""
        return None if self.decision is None else self.decision.winner.run

    def values(self) -> tuple[Any, ...]:
        """The values of ``tables.RESULT_COLUMNS``."""
        row = self.row
        batch_id, home, run_id, rest = self._changing()
        head = (row.input_id, row.external_id, row.submission_id, batch_id, row.position, *home)
        return (*head, row.file, row.metadata, run_id, *rest)

    def staged(self, before: str) -> tuple[Any, ...]:
        """The values of ``tables.STAGED_COLUMNS``; ``before`` is the version that the row has in the table."""
        batch_id, home, run_id, rest = self._changing()
        return (self.row.input_id, before, batch_id, *home, run_id, *rest)

    def _changing(self) -> tuple[str | None, tuple[str, int], str | None, tuple[Any, ...]]:
        row = self.row
        if self.decision is not None:
            run = self.decision.winner
            return run.batch_id, home_of(run, row), run.run_id, (*run_values(run), self.version)
        settled = row.observed_at if row.status in SETTLED else None
        told = (row.status, self.reason, self.message, None, None, None, row.observed_at, settled)
        return row.batch_id, row.home, None, (*told, self.version)
