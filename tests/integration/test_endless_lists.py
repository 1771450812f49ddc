"""A list that never ends is given up after a bounded number of pages, and everything else continues."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.integration.test_sweeps import Bench, bench
from tests.integration.vendor import Vendor

pytestmark = pytest.mark.stack
__all__ = ["bench"]


class Endlessly(Vendor):
    """Replace the lists of a batch, or of the workflow: ``page`` maps a page's number to its runs and next token."""

    def __init__(self, workflow: str, batch: str | None, page: Callable[[int], tuple[list[str], str]]) -> None:
        super().__init__(workflow)
        self._batch, self._page, self.pages = batch, page, 0

    def answer(self, request: httpx.Request) -> httpx.Response:
        query = dict(request.url.params)
        if request.url.path != "/workflow_runs" or query.get("batchId") != self._batch:
            return super().answer(request)
        # End the test if the list is never given up.
        assert self.pages < 10_000, "the list is read for ever"
        runs, token = self._page(self.pages)
        self.pages += 1
        data: list[Any] = [{"id": run_id, "status": "PENDING", "batchId": self._batch} for run_id in runs]
        return httpx.Response(200, json={"data": data, "nextPageToken": token})


def cycle(length: int) -> Callable[[int], tuple[list[str], str]]:
    """After 5 pages the tokens repeat, while the runs are always new."""
    return lambda n: ([f"r-{n}"], f"t-{n if n < 5 else 5 + (n - 5) % length}")


PAGES: dict[str, tuple[Callable[[int], tuple[list[str], str]], int]] = {
    "the same token": (cycle(1), 40),
    "a cycle of 2": (cycle(2), 40),
    "a cycle of 700": (cycle(700), 3 * 705 + 10),
    "new tokens, the same run": (lambda n: (["r"], f"t-{n}"), 20),
    "new tokens, no runs": (lambda n: ([], f"t-{n}"), 20),
    "new tokens, a cycle of runs": (lambda n: ([f"r-{n % 300}"], f"t-{n}"), 320),
}


@pytest.mark.parametrize("case", PAGES)
async def test_other_batches_are_polled_and_swept_while_one_list_never_ends(bench: Bench, case: str) -> None:
    page, most = PAGES[case]
    vendor = Endlessly("workflow_test", "endless", page)
    bench.restart(vendor, poll_every=1e-9)
    await bench.batch("endless", ago=200)
    await bench.batch("other")
    vendor.run("r-other", "PROCESSED", "other")
    await bench.polling.poll_due()
    await bench.sweep()
    assert bench.log.subjects() == ["r-other"]
    assert await bench.swept() == 1
    assert 0 < vendor.pages <= most
    # It is retried, and given up again after a bounded number of pages.
    await bench.polling.poll_due()
    assert 0 < vendor.pages <= 2 * most


@pytest.mark.parametrize("case", PAGES)
async def test_endless_sweep_is_incomplete_and_polls_continue(bench: Bench, case: str) -> None:
    page, most = PAGES[case]
    vendor = Endlessly("workflow_test", None, page)
    bench.restart(vendor)
    await bench.batch("other")
    vendor.run("r-other", "PROCESSED", "other")
    await bench.sweep()
    assert (await bench.swept(), 0 < vendor.pages <= most) == (0, True)
    await bench.polling.poll_due()
    assert "r-other" in bench.log.subjects()
