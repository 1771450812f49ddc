"""Read the runs in Extend's lists, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime

from everyrun.extend.client import Extend
from everyrun.extend.run_lists import RunPages
from everyrun.reconciler.listed_runs import ListedRun, read_page


class RunLists:
    """Lists runs in as few requests as possible, with the largest pages that Extend accepts."""

    def __init__(self, extend: Extend) -> None:
        self._pages = RunPages(extend)

    async def pages(self, **query: str) -> AsyncIterator[tuple[list[ListedRun], datetime]]:
        """Yield the runs of each page, and the time at which Extend sent the page (by Extend's clock).

        Raises ExtendError if a request fails or the list does not end. Raises msgspec.DecodeError if a page cannot be
        read.
        """
        async for page in self._pages.pages(**query):
            yield read_page(page.data), page.at
