"""Uploading local files to Extend, once each: what is uploaded is remembered by path, size and content."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import msgspec

from everyrun.cli.folder import shown
from everyrun.cli.manifest import Local
from everyrun.embedded.state import NO_PROXY
from everyrun.errors import EveryrunError
from everyrun.extend.client import API_VERSION, retry_after
from everyrun.redact import describe

_AT_ONCE = 8
_TRIES = 8
#: A remembered upload that Extend was not asked about for so long may be gone there, in seconds.
CHECK_AFTER = 86_400.0
#: Answers that another try may change.
_PASSING = (408, 429, 500, 502, 503, 504)
#: Answers that are about the account, and so the same for every file.
_OF_THE_ACCOUNT = (401, 402, 403)


class UploadFailedError(EveryrunError):
    """Files could not be uploaded, so nothing was handed in: each with the reason; or none could be."""

    def __init__(self, message: str, files: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.files = files


class _FileError(Exception):
    """One file cannot be uploaded."""


class _AccountError(Exception):
    """No file can be uploaded."""


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

    def headers(self) -> dict[str, str]:
        """Return the head of every request. Raises UploadFailedError for what cannot be sent, without showing it."""
        given = {"EXTEND_API_KEY": self.api_key, "EXTEND_WORKSPACE_ID": self.workspace_id}
        for name, value in given.items():
            if not (value.isascii() and (value.isprintable() or not value)):
                raise UploadFailedError(f"{name} has a character that no key has, such as a line break; set it anew")
        headers = {"authorization": f"Bearer {self.api_key}", "x-extend-api-version": API_VERSION}
        return headers | ({"x-extend-workspace-id": self.workspace_id} if self.workspace_id else {})


class Known(NamedTuple):
    """An upload that is remembered."""

    file_id: str
    #: When Extend last said that it has the file.
    seen_at: float


class Journal:
    """What was uploaded to which account, in a small SQLite file. Raises UploadFailedError if it cannot be used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path)
            self._write(
                "create table if not exists files (extend text, path text, size int, digest text, file_id text, "
                "seen_at real, primary key (extend, path, size, digest))"
            )
        except (OSError, sqlite3.Error) as error:
            raise self._failed(error) from None

    def _failed(self, error: Exception) -> UploadFailedError:
        remedy = "name another folder with --data-dir, or remove the file: its files are then uploaded once more"
        return UploadFailedError(f"{shown(self._path)} cannot be used ({error}); {remedy}")

    def _write(self, statement: str, *values: Any) -> None:
        try:
            with self._db:
                self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise self._failed(error) from None

    def find(self, extend: str, path: Path, size: int, digest: str) -> Known | None:
        """Return what is remembered of this very content from this path, at the account of that name."""
        key = (extend, shown(os.path.realpath(path)), size, digest)
        statement = "select file_id, seen_at from files where extend = ? and path = ? and size = ? and digest = ?"
        try:
            row = self._db.execute(statement, key).fetchone()
        except sqlite3.Error as error:
            raise self._failed(error) from None
        return Known(str(row[0]), float(row[1])) if row else None

    def remember(self, extend: str, path: Path, size: int, digest: str, file_id: str) -> None:
        """Keep that Extend has the file now."""
        values = (extend, shown(os.path.realpath(path)), size, digest, file_id, time.time())
        self._write("insert or replace into files values (?, ?, ?, ?, ?, ?)", *values)

    def close(self) -> None:
        """Close the file."""
        self._db.close()


async def upload_all(
    files: Sequence[Local], account: Account, journal: Journal, done: Callable[[bool], None], ask_again: bool = False
) -> list[str]:
    """Return the id of each file. ``done`` is told of each if it was known. Raises UploadFailedError.

    A file that cannot be uploaded keeps no other from it: all of them are named at the end. What was uploaded before an
    error or an interruption is remembered. Extend is asked if it still has what was uploaded long ago; with
    ``ask_again`` it is asked about every file.
    """
    uploads = _Uploads(account, journal, ask_again)
    ids = [""] * len(files)
    failed: list[tuple[str, str]] = []
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(number: int, file: Local) -> None:
        async with room:
            try:
                ids[number], known = await uploads.id_of(file)
                done(known)
            except _FileError as error:
                failed.append((shown(file.path), str(error)))

    try:
        async with uploads.http, asyncio.TaskGroup() as group:
            for number, file in enumerate(files):
                group.create_task(one(number, file))
    except* (_AccountError, UploadFailedError) as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise UploadFailedError(str(first)) from None
    if failed:
        raise UploadFailedError(f"{len(failed)} files could not be uploaded to Extend", sorted(failed))
    return ids


class _Uploads:
    def __init__(self, account: Account, journal: Journal, ask_again: bool) -> None:
        try:
            self.http = httpx.AsyncClient(
                base_url=account.base_url, headers=account.headers(), timeout=300, mounts=NO_PROXY
            )
        except httpx.InvalidURL as error:
            raise UploadFailedError(f"{account.base_url} is no address: {error}") from None
        self._name = account.name
        self._journal = journal
        self._ask_again = ask_again

    async def id_of(self, file: Local) -> tuple[str, bool]:
        """Return the file's id, and if it was known. Raises _FileError, _AccountError."""
        try:
            content = await asyncio.to_thread(file.path.read_bytes)
        except OSError as error:
            raise _FileError(error.strerror or str(error)) from None
        if not content:
            raise _FileError("the file is empty")
        # The password is part of what was uploaded; it is not to be found out from the journal without the content.
        how = msgspec.json.encode([file.name, file.password])
        digest = hashlib.sha256(hashlib.sha256(content).digest() + how).hexdigest()
        place = (self._name, file.path, len(content), digest)
        known = self._journal.find(*place)
        if known is not None:
            if not self._ask_again and time.time() - known.seen_at < CHECK_AFTER:
                return known.file_id, True
            if await self._has(known.file_id):
                self._journal.remember(*place, known.file_id)
                return known.file_id, True
        file_id = await self._upload(file, content)
        self._journal.remember(*place, file_id)
        return file_id, False

    async def _has(self, file_id: str) -> bool:
        """GET /files/{id}: whether Extend has the file."""
        answer = await self._answer("GET", f"/files/{quote(file_id, safe='')}")
        if answer.status_code in (404, 410):
            return False
        if not answer.is_success:
            raise _FileError(_said(answer))
        return True

    async def _upload(self, file: Local, content: bytes) -> str:
        """POST /files/upload (SDK 1.20.0, files/client.py). A second try can at worst leave a file that is not used."""
        form = {"password": file.password} if file.password else {}
        answer = await self._answer("POST", "/files/upload", files={"file": (file.name, content)}, data=form)
        if not answer.is_success:
            raise _FileError(_said(answer))
        try:
            return str(answer.json()["id"])
        except (ValueError, KeyError, TypeError):
            raise _AccountError(f"{self.http.base_url} answered without a file's id: is it Extend?") from None

    async def _answer(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Return an answer that is about this file. Raises _AccountError."""
        wait, problem = 1.0, ""
        for _ in range(_TRIES):
            pause = None
            try:
                answer = await self.http.request(method, path, **more)
                if answer.status_code in _OF_THE_ACCOUNT:
                    raise _AccountError(f"Extend refuses to take files: {_said(answer)}")
                if answer.status_code not in _PASSING:
                    return answer
                problem = _said(answer)
                pause = retry_after(answer.headers)
            except (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
                # No byte was sent. The text may have what was to be sent, the key too.
                raise _AccountError(f"no request can be made to {self.http.base_url}: {type(error).__name__}") from None
            except httpx.TransportError as error:
                problem = describe(error)
            await asyncio.sleep(wait if pause is None else pause)
            wait = min(wait * 2, 30)
        raise _AccountError(f"Extend does not take files: {problem}, {_TRIES} times")


def _said(answer: httpx.Response) -> str:
    return f"{answer.status_code}: {answer.text[:300]}"
