"""Read Extend's lists of runs page by page. If the pages of a list never end, give the list up with an error."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from everyrun.extend.client import Extend, ExtendError, Page

#: Number of runs per page. The first number is the maximum in Extend's older documentation. If Extend refuses it, the
#: second number is used.
_PAGE, _SMALL_PAGE = 1000, 100
#: Timeout of the request for a page, in seconds.
_PAGE_WITHIN = 60.0
#: After this many pages in a row without a new run, a list is given up. A few such pages are normal, because a run that
#: changes while the list is read can be listed again.
NO_PROGRESS = 10
#: Number of bits that remember which runs a list has shown. They take 2 MiB, however long the list is.
_BITS = 1 << 24


class EndlessListDetector:
    """Detects, in constant memory, that a list of runs does not end.

    There are two signs of an endless list. The first sign is a page token that repeats. Brent's algorithm notices it
    within three rounds of the repeating pages. For this it keeps only one token, which it replaces after 1, 2, 4, …
    pages. The second sign is that runs repeat although all tokens are new. A Bloom filter remembers the runs that were
    shown. It may take a new run for a known one. That does no harm, because a page counts as repeated only if every run
    on it seems to be known.
    """

    def __init__(self) -> None:
        self._kept: str | None = None
        self._pages = 0
        self._keep_at = 1
        self._shown = bytearray(_BITS // 8)
        self._without = 0

    def problem(self, runs: Iterable[str], token: str) -> str | None:
        """Take note of a page: its runs, and the token of the next page.

        Return why the list does not end, or None if it still may.
        """
        # Not any(), which would stop at the first new run and not remember the other runs.
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


class RunPages:
    """Lists runs in as few requests as possible, with the largest pages that Extend accepts."""

    def __init__(self, extend: Extend) -> None:
        self._extend = extend
        self._size = _PAGE

    async def pages(self, **query: str) -> AsyncIterator[Page]:
        """Yield the pages of a list. Raises ExtendError if a request fails or the list does not end."""
        token: str | None = None
        endless = EndlessListDetector()
        while True:
            page = await self._page({**query, "nextPageToken": token} if token else dict(query))
            yield page
            if page.token is None:
                return
            token = page.token
            ids = (entry["id"] for entry in page.data if isinstance(entry, dict) and isinstance(entry.get("id"), str))
            if (problem := endless.problem(ids, token)) is not None:
                raise ExtendError(200, "ENDLESS_LIST", f"the list of runs does not end: {problem}")

    async def _page(self, query: dict[str, str]) -> Page:
        try:
            return await self._extend.list_runs(_PAGE_WITHIN, **query, maxPageSize=self._size)
        except ExtendError as error:
            if error.status != 400 or self._size == _SMALL_PAGE or "nextPageToken" in query:
                raise
        self._size = _SMALL_PAGE
        return await self._extend.list_runs(_PAGE_WITHIN, **query, maxPageSize=self._size)
