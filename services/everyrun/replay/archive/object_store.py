"""Read and write the files of an archive in a folder or an object store (s3://, gs://, az://)."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url

from everyrun.errors import Conflict

#: The errors that are raised if a store does not answer or refuses a request.
OBJECT_STORE_ERRORS = (BaseError, OSError)


class ObjectExistsError(Conflict):
    """An object with this path exists already."""


class ObjectStore:
    """The objects of an archive, by path. A write stores the whole object or nothing."""

    def __init__(self, location: str, *, create: bool = False) -> None:
        """Open a folder, or an object store by its URL.

        If ``create`` is true, a folder that does not exist is created. If it is false, FileNotFoundError is raised for
        such a folder. The credentials and endpoint of an object store come from its usual environment variables, such
        as AWS_ACCESS_KEY_ID.
        """
        self.location = location
        self._store: Any
        if "://" in location and not location.startswith("file://"):
            self._store = from_url(location.rstrip("/"))
            return
        folder = Path(location.removeprefix("file://")).expanduser().resolve()
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
        self._store = LocalStore(folder)

    async def get(self, path: str) -> bytes:
        """Return a small object. Raises FileNotFoundError."""
        return bytes(await (await obstore.get_async(self._store, path)).bytes_async())

    async def fetch(self, path: str, into: IO[bytes]) -> str:
        """Copy an object into a file, rewind the file, and return the SHA-256. Raises FileNotFoundError."""
        sha256 = hashlib.sha256()
        async for part in (await obstore.get_async(self._store, path)).stream():
            into.write(part)
            sha256.update(part)
        into.flush()
        into.seek(0)
        return sha256.hexdigest()

    async def put(self, path: str, content: bytes | Path) -> None:
        """Write an object. An existing object with the same path is replaced."""
        await obstore.put_async(self._store, path, content)

    async def create(self, path: str, content: bytes) -> None:
        """Write a new object. Raises ObjectExistsError if the path is taken."""
        try:
            await obstore.put_async(self._store, path, content, mode="create")
        except AlreadyExistsError:
            raise ObjectExistsError(path) from None

    async def paths(self, folder: str) -> list[str]:
        """Return the paths of all objects below a folder, sorted."""
        return sorted([path async for path in self._paths(folder)])

    async def _paths(self, folder: str) -> AsyncIterator[str]:
        async for page in obstore.list(self._store, prefix=folder):
            for meta in page:
                yield meta["path"]

    async def delete(self, paths: list[str]) -> None:
        """Delete the objects with these paths."""
        if paths:
            await obstore.delete_async(self._store, paths)
