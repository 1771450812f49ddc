"""Read Extend's lists of runs page by page, and stop if a list does not end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from datetime import datetime

from everyrun.extend.client import Extend, ExtendError, Page
from everyrun.reconciler.listed_runs import ListedRun, read_page

#: Runs per page: the maximum in Extend's older documentation, and the size to use if Extend refuses that.
_PAGE, _SMALL_PAGE = 1000, 100
_PAGE_WITHIN = 60.0
#: Pages in a row without a new run after which a list is given up. Runs that change while they are listed repeat.
NO_PROGRESS = 10
#: Bits that remember which runs a list has shown: 2 MiB, however long the list is.
_BITS = 1 << 24


class EndlessListDetector:
    """Detects a list that does not end, in constant memory.

    It finds a page token that repeats within three cycles of the repeating pages (Brent's algorithm keeps one token,
    and replaces it after 1, 2, 4, … pages). If tokens are always new, it finds runs that repeat, by a Bloom filter of
    the runs that were shown. False positives do no harm: a page counts only if every run on it was shown before.
    """

    def __init__(self) -> None:
        self._kept: str | None = None
        self._pages = 0
        self._keep_at = 1
        self._shown = bytearray(_BITS // 8)
        self._without = 0

    def problem(self, runs: Iterable[str], token: str) -> str | None:
        """Return the problem of a list that continues at ``token`` after a page of these runs, or None."""
        # A list, because any() would stop at the first new run and not remember the others.
        new = sum([self._is_new(run_id) for run_id in runs])
        self._without = 0 if new else self._without + 1
        if self._without >= NO_PROGRESS:
            return f"{NO_PROGRESS} pages in a row have no new run"
        if token == self._kept:
            return "a page token repeats"
        self._pages += 1
        if self._pages == self._keep_at:
            self._kept, self._keep_at = token, self._keep_at * 2
        return None

    def _is_new(self, run_id: str) -> bool:
        number, new = hash(run_id), False
        for bit in (number % _BITS, (number >> 24) % _BITS):
            new = new or not self._shown[bit >> 3] & (1 << (bit & 7))
            self._shown[bit >> 3] |= 1 << (bit & 7)
        return new


class RunLists:
    """Lists runs in as few requests as Extend allows."""

    def __init__(self, extend: Extend) -> None:
        self._extend = extend
        self._size = _PAGE

    async def pages(self, **query: str) -> AsyncIterator[tuple[list[ListedRun], datetime]]:
        """Yield the runs of each page, with Extend's time when it sent the page.

        Raises ExtendError, also if the list does not end, and msgspec.DecodeError.
        """
        token: str | None = None
        endless = EndlessListDetector()
        while True:
            page = await self._page({**query, "nextPageToken": token} if token else dict(query))
            runs = read_page(page.data)
            yield runs, page.at
            if page.token is None:
                return
            token = page.token
            if (problem := endless.problem((run.run_id for run in runs), token)) is not None:
                raise ExtendError(200, "ENDLESS_LIST", f"the list of runs does not end: {problem}")

    async def _page(self, query: dict[str, str]) -> Page:
        try:
            return await self._extend.list_runs(_PAGE_WITHIN, **query, maxPageSize=self._size)
        except ExtendError as error:
            if error.status != 400 or self._size == _SMALL_PAGE or "nextPageToken" in query:
                raise
        self._size = _SMALL_PAGE
        return await self._extend.list_runs(_PAGE_WITHIN, **query, maxPageSize=self._size)
