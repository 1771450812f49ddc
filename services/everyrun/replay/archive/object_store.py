"""Where an archive lies: a folder, or an object store by URL (s3://, gs://, az://); the same code for all."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url

from everyrun.errors import Conflict

#: What reading and writing raise where the store does not answer or refuses.
ObjectsError = (BaseError, OSError)


class TakenError(Conflict):
    """The object is there already."""


class Objects:
    """The objects of an archive, by path. Every write is whole or not at all."""

    def __init__(self, place: str, *, create: bool = False) -> None:
        """``place`` is a folder or a URL. With ``create`` a folder that is missing is made; else it is an OSError.

        An object store takes its credentials and endpoint from the environment, as its own tools do (AWS_...).
        """
        self.place = place
        self._store: Any
        if "://" in place and not place.startswith("file://"):
            self._store = from_url(place.rstrip("/"))
            return
        folder = Path(place.removeprefix("file://")).expanduser().resolve()
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
        self._store = LocalStore(folder)

    async def get(self, path: str) -> bytes:
        """A small object, whole. Raises FileNotFoundError."""
        return bytes(await (await obstore.get_async(self._store, path)).bytes_async())

    async def fetch(self, path: str, into: IO[bytes]) -> str:
        """Copy an object into a file, which is then at its begin; its SHA-256. Raises FileNotFoundError."""
        sha256 = hashlib.sha256()
        async for part in (await obstore.get_async(self._store, path)).stream():
            into.write(part)
            sha256.update(part)
        into.flush()
        into.seek(0)
        return sha256.hexdigest()

    async def put(self, path: str, content: bytes | Path) -> None:
        """Write an object, over one that is there."""
        await obstore.put_async(self._store, path, content)

    async def create(self, path: str, content: bytes) -> None:
        """Write an object that is not there yet. Raises TakenError where it is."""
        try:
            await obstore.put_async(self._store, path, content, mode="create")
        except AlreadyExistsError:
            raise TakenError(path) from None

    async def paths(self, folder: str) -> list[str]:
        """The paths of every object below a folder, sorted."""
        return sorted([path async for path in self._paths(folder)])

    async def _paths(self, folder: str) -> AsyncIterator[str]:
        async for chunk in obstore.list(self._store, prefix=folder):
            for meta in chunk:
                yield meta["path"]

    async def delete(self, paths: list[str]) -> None:
        """Remove objects."""
        if paths:
            await obstore.delete_async(self._store, paths)
