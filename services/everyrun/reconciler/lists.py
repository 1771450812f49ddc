"""Extend's lists, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime

from everyrun.extend.client import Extend, ExtendError, Page
from everyrun.reconciler.missing import Listed, read_page

#: Runs a page: the most of the older docs; where it is too many for today's, a number that the CLI's users ask for.
_PAGE, _SMALL_PAGE = 1000, 100
_EACH_WITHIN = 60.0


class Lists:
    """Lists of runs, in as few requests as Extend allows."""

    def __init__(self, extend: Extend) -> None:
        self._extend = extend
        self._size = _PAGE

    async def pages(self, **query: str) -> AsyncIterator[tuple[list[Listed], datetime]]:
        """The pages of a list, each with Extend's time when it was sent. Raises ExtendError, msgspec.DecodeError."""
        token: str | None = None
        while True:
            page = await self._page({**query, "nextPageToken": token} if token else dict(query))
            yield read_page(page.data), page.at
            if page.token is None:
                return
            token = page.token

    async def _page(self, query: dict[str, str]) -> Page:
        try:
            return await self._extend.list_runs(_EACH_WITHIN, **query, maxPageSize=self._size)
        except ExtendError as error:
            if error.status != 400 or self._size == _SMALL_PAGE or "nextPageToken" in query:
                raise
        self._size = _SMALL_PAGE
        return await self._extend.list_runs(_EACH_WITHIN, **query, maxPageSize=self._size)
