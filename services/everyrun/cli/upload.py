"""Uploading local files to Extend, once each: what is uploaded is remembered by path, size and hash."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import httpx

from everyrun.embedded.state import NO_PROXY
from everyrun.extend.client import API_VERSION, retry_after

_AT_ONCE = 8
_TRIES = 8


class UploadFailedError(Exception):
    """A file could not be uploaded; the text names it and says why."""


class Account(NamedTuple):
    """Where files are uploaded to."""

    base_url: str
    api_key: str
    #: Needed with an organization's key; else empty.
    workspace_id: str

    @property
    def name(self) -> str:
        """What tells it from others, without the key: a file is known in its own workspace only."""
        digest = hashlib.sha256(f"{self.api_key} {self.workspace_id}".encode()).hexdigest()
        return f"{self.base_url} {digest[:16]}"


class Journal:
    """What was uploaded to which account, in a small SQLite file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path)
        self._db.execute(
            "create table if not exists uploads (extend text, path text, size int, sha256 text, file_id text, "
            "primary key (extend, path, size, sha256))"
        )

    def find(self, extend: str, path: Path, size: int, sha256: str) -> str | None:
        """The file's id at that account, by its name, if this very content was uploaded from this path."""
        key = (extend, str(path.resolve()), size, sha256)
        row = self._db.execute(
            "select file_id from uploads where extend = ? and path = ? and size = ? and sha256 = ?", key
        ).fetchone()
        return str(row[0]) if row else None

    def remember(self, extend: str, path: Path, size: int, sha256: str, file_id: str) -> None:
        """Kept before the next file is begun."""
        with self._db:
            self._db.execute(
                "insert or replace into uploads values (?, ?, ?, ?, ?)",
                (extend, str(path.resolve()), size, sha256, file_id),
            )


async def upload_all(
    paths: Iterable[Path], account: Account, journal: Journal, done: Callable[[Path, bool], None]
) -> dict[Path, str]:
    """The file id of each path; ``done`` is told of each, and whether it was known. Raises UploadFailedError.

    What was uploaded before an error or an interruption is remembered: the next call goes on from there.
    """
    found: dict[Path, str] = {}
    headers = {"authorization": f"Bearer {account.api_key}", "x-extend-api-version": API_VERSION}
    if account.workspace_id:
        headers["x-extend-workspace-id"] = account.workspace_id
    name = account.name
    room = asyncio.Semaphore(_AT_ONCE)
    async with httpx.AsyncClient(base_url=account.base_url, headers=headers, timeout=300, mounts=NO_PROXY) as http:

        async def one(path: Path) -> None:
            async with room:
                try:
                    content = await asyncio.to_thread(path.read_bytes)
                except OSError as error:
                    raise UploadFailedError(f"{path}: {error.strerror}") from None
                sha256 = hashlib.sha256(content).hexdigest()
                known = journal.find(name, path, len(content), sha256)
                found[path] = known or await _upload(http, path, content)
                if known is None:
                    journal.remember(name, path, len(content), sha256, found[path])
                done(path, known is not None)

        try:
            async with asyncio.TaskGroup() as group:
                for path in dict.fromkeys(paths):
                    group.create_task(one(path))
        except* UploadFailedError as errors:
            raise UploadFailedError(str(errors.exceptions[0])) from None
    return found


async def _upload(http: httpx.AsyncClient, path: Path, content: bytes) -> str:
    """POST /files/upload (SDK 1.20.0, files/client.py). A second try can at worst leave a file that is not used."""
    wait, problem = 1.0, ""
    for _ in range(_TRIES):
        pause = None
        try:
            answer = await http.post("/files/upload", files={"file": (path.name, content)})
            if answer.is_success:
                return str(answer.json()["id"])
            problem = f"{answer.status_code}: {answer.text[:300]}"
            if answer.status_code not in (408, 429, 500, 502, 503, 504):
                break
            pause = retry_after(answer.headers)
        except httpx.TransportError as error:
            problem = f"{type(error).__name__}: {error}"
        await asyncio.sleep(wait if pause is None else pause)
        wait = min(wait * 2, 30)
    raise UploadFailedError(f"{path} could not be uploaded to Extend: {problem}")
