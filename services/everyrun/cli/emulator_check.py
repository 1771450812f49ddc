"""Compare the result tables with the emulator's record of what happened. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from msgspec import Struct

from everyrun.extend import reserved
from everyrun.log.keys import retry_of
from everyrun.projection.rules.merge import FINAL
from everyrun.projection.rules.run_selection import version_of_run


class Comparison(Struct, frozen=True):
    """The outcome of a comparison."""

    agrees: bool
    #: Number of chunks for which the emulator has more than one batch.
    double_batches: int
    #: Number of runs at the emulator, not counting the first run of each input.
    duplicates: int
    #: The first twenty differences, as sentences.
    differences: list[str]


class _TrueRun(NamedTuple):
    """A run at the emulator: its status, and the retry that started it (0 for a first try)."""

    status: str
    retry: int


def compare(
    truth: Iterable[Mapping[str, Any]], results: Mapping[str, tuple[str | None, str]], duplicates: int
) -> Comparison:
    """Compare the emulator's runs (``truth``) with the result tables.

    ``results`` maps an input id to its run id and status; ``duplicates`` is the number of duplicate runs in the tables.
    Both sides agree if each input has the right current run with the right status, and if every further run of an
    input is in ``other_runs``, as a duplicate or superseded.
    """
    runs: dict[str, dict[str, _TrueRun]] = defaultdict(dict)
    batches: dict[str, set[str]] = defaultdict(set)
    differences = []
    for line in truth:
        key = reserved.read(line["metadata"])
        if key is None:
            differences.append(f"run {line['run_id']} has no reserved key")
            continue
        runs[key.input][line["run_id"]] = _TrueRun(line["status"], retry_of(key.chunk))
        batches[key.chunk].add(line["batch_id"])
    for input_id in sorted(set(runs) | {i for i, (run_id, _) in results.items() if run_id}):
        if input_id not in runs:
            differences.append(f"{input_id} has run {results[input_id][0]}, which Extend does not know")
            continue
        current = _current_run(runs[input_id])
        found = results.get(input_id)
        true = (current, runs[input_id][current].status)
        if found != true:
            differences.append(f"{input_id} is {found}, but the emulator has {true}")
    further = sum(len(of_input) - 1 for of_input in runs.values())
    if further != duplicates:
        differences.append(f"{duplicates} further runs are known, but the emulator has {further}")
    double = sum(len(ids) > 1 for ids in batches.values())
    return Comparison(not differences, double, further, differences[:20])


def least_requests(truth: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return the smallest numbers of calls and of GETs that could have sent every batch and found every result.

    Each batch needs one call. Each run for which no webhook was delivered needs one GET. Each batch with such runs
    needs one more GET, for a page of the list of runs.
    """
    calls: set[str] = set()
    unheard: dict[str, int] = defaultdict(int)
    for line in truth:
        calls.add(line["batch_id"])
        if not line["webhooks"]["delivered"]:
            unheard[line["batch_id"]] += 1
    return {"run": len(calls), "get": sum(unheard.values()) + len(unheard)}


def _current_run(runs: Mapping[str, _TrueRun]) -> str:
    versions = {version_of_run(run_id, run.status in FINAL, "", run.retry): run_id for run_id, run in runs.items()}
    return versions[max(versions)]
