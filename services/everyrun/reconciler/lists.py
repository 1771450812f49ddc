"""Extend's lists, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from datetime import datetime

from everyrun.extend.client import Extend, ExtendError, Page
from everyrun.reconciler.missing import Listed, read_page

#: Runs a page: the most of the older docs; where it is too many for today's, a number that the CLI's users ask for.
_PAGE, _SMALL_PAGE = 1000, 100
_EACH_WITHIN = 60.0
#: Pages in a row without a new run after which a list is given up. Runs that move while they are listed repeat a page.
NO_PROGRESS = 10
#: Bits that remember which runs a listing has shown: 2 MiB, however long the list is.
_BITS = 1 << 24


class Endless:
    """Notices a list that does not end, in memory that does not grow with it.

    A token that comes back is noticed after at most three times the pages of its cycle (Brent's algorithm: one token
    is kept, and replaced by a later one ever more rarely). A list whose tokens are always new, and whose runs are not,
    is noticed by its runs: a Bloom filter says which were shown. Its false alarms do not matter: a page is without
    progress only if every run on it was shown.
    """

    def __init__(self) -> None:
        self._kept: str | None = None
        self._pages = 0
        self._keep_at = 1
        self._shown = bytearray(_BITS // 8)
        self._without = 0

    def problem(self, runs: Iterable[str], token: str) -> str | None:
        """Return what is wrong with a list that goes on at ``token`` after a page of these runs, or None."""
        # All of them: any() would stop at the first that is new.
        new = sum([self._is_new(run_id) for run_id in runs])
        self._without = 0 if new else self._without + 1
        if self._without >= NO_PROGRESS:
            return f"{NO_PROGRESS} pages in a row have no run that the list did not have before"
        if token == self._kept:
            return "a page's token is that of an earlier page"
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


class Lists:
    """Lists of runs, in as few requests as Extend allows."""

    def __init__(self, extend: Extend) -> None:
        self._extend = extend
        self._size = _PAGE

    async def pages(self, **query: str) -> AsyncIterator[tuple[list[Listed], datetime]]:
        """Yield the pages of a list, each with Extend's time when it was sent.

        Raises ExtendError, also for a list that does not end, and msgspec.DecodeError.
        """
        token: str | None = None
        endless = Endless()
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
            return await self._extend.list_runs(_EACH_WITHIN, **query, maxPageSize=self._size)
        except ExtendError as error:
            if error.status != 400 or self._size == _SMALL_PAGE or "nextPageToken" in query:
                raise
        self._size = _SMALL_PAGE
        return await self._extend.list_runs(_EACH_WITHIN, **query, maxPageSize=self._size)
