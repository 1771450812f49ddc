"""Upload local files to Extend, each file only once: uploads are remembered by path, size and content."""

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

from everyrun.cli.console import counted
from everyrun.cli.folder import shown
from everyrun.cli.manifest import Local
from everyrun.embedded.state import NO_PROXY
from everyrun.errors import EveryrunError
from everyrun.extend.client import API_VERSION, retry_after
from everyrun.redact import describe

#: Maximum number of concurrent uploads.
_AT_ONCE = 8
#: Maximum number of tries of each request.
_TRIES = 8
#: If Extend confirmed a remembered upload more than this many seconds ago, it is asked whether it still has the file.
CHECK_AFTER = 86_400.0
#: HTTP statuses after which a retry may succeed.
_PASSING = (408, 429, 500, 502, 503, 504)
#: HTTP statuses that mean that something is wrong with the account, so that no file can be uploaded.
_OF_THE_ACCOUNT = (401, 402, 403)


class UploadFailedError(EveryrunError):
    """Files could not be uploaded, so nothing was submitted.

    ``files`` lists the failed files, each with the reason. It is empty if the cause does not lie in a file.
    """

    def __init__(self, message: str, files: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.files = files


class _FileError(Exception):
    """One file cannot be uploaded."""


class _AccountError(Exception):
    """No file can be uploaded."""


class Account(NamedTuple):
    """The account at Extend that receives the files."""

    base_url: str
    api_key: str
    #: Needed if the key is that of an organization; otherwise empty.
    workspace_id: str

    @property
    def name(self) -> str:
        """Return a name for the workspace that does not reveal the key.

        Uploads are remembered under this name, because a file exists in one workspace only.
        """
        digest = hashlib.sha256(f"{self.api_key} {self.workspace_id}".encode()).hexdigest()
        return f"{self.base_url} {digest[:16]}"

    def headers(self) -> dict[str, str]:
        """Return the headers of every request.

        Raises UploadFailedError if a value cannot be sent in a header. The error does not reveal the value.
        """
        given = {"EXTEND_API_KEY": self.api_key, "EXTEND_WORKSPACE_ID": self.workspace_id}
        for name, value in given.items():
            if not (value.isascii() and (value.isprintable() or not value)):
                raise UploadFailedError(f"{name} has a character that no key has, such as a line break; set it again")
        headers = {"authorization": f"Bearer {self.api_key}", "x-extend-api-version": API_VERSION}
        return headers | ({"x-extend-workspace-id": self.workspace_id} if self.workspace_id else {})


class Known(NamedTuple):
    """A remembered upload."""

    file_id: str
    #: Time at which Extend last confirmed that it has the file, in seconds since the epoch.
    seen_at: float


class Journal:
    """Remember the uploads to each account, in a small SQLite file.

    Methods raise UploadFailedError if the file cannot be used.
    """

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
        """Return the upload of this content from this path to the account, if it is remembered."""
        key = (extend, shown(os.path.realpath(path)), size, digest)
        statement = "select file_id, seen_at from files where extend = ? and path = ? and size = ? and digest = ?"
        try:
            row = self._db.execute(statement, key).fetchone()
        except sqlite3.Error as error:
            raise self._failed(error) from None
        return Known(str(row[0]), float(row[1])) if row else None

    def remember(self, extend: str, path: Path, size: int, digest: str, file_id: str) -> None:
        """Remember the upload, and that Extend has the file at this moment."""
        values = (extend, shown(os.path.realpath(path)), size, digest, file_id, time.time())
        self._write("insert or replace into files values (?, ?, ?, ?, ?, ?)", *values)

    def close(self) -> None:
        """Close the file."""
        self._db.close()


async def upload_all(
    files: Sequence[Local], account: Account, journal: Journal, done: Callable[[bool], None], ask_again: bool = False
) -> list[str]:
    """Upload files and return their ids. Calls ``done`` after each file, with True if the file was uploaded before.

    Uploads that were complete before an error or an interruption are remembered. If Extend confirmed a remembered
    upload more than CHECK_AFTER seconds ago, Extend is asked whether it still has the file. If ``ask_again`` is True,
    Extend is asked about every remembered upload.

    Raises UploadFailedError. If only some files fail, the other files are uploaded first, and the error names all files
    that failed.
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
        raise UploadFailedError(f"{counted(len(failed), 'file')} could not be uploaded to Extend", sorted(failed))
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
        """Return the file's id, and True if it was uploaded before. Raises _FileError, _AccountError."""
        try:
            content = await asyncio.to_thread(file.path.read_bytes)
        except OSError as error:
            raise _FileError(error.strerror or str(error)) from None
        if not content:
            raise _FileError("the file is empty")
        # The digest covers the name and the password too: if they change, the file must be uploaded again. It also
        # covers the content. Otherwise, whoever has the journal could find the password by guessing.
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
        """Return True if Extend still has the file (GET /files/{id})."""
        answer = await self._answer("GET", f"/files/{quote(file_id, safe='')}")
        if answer.status_code in (404, 410):
            return False
        if not answer.is_success:
            raise _FileError(_said(answer))
        return True

    async def _upload(self, file: Local, content: bytes) -> str:
        """Upload the file (POST /files/upload, as files/client.py of Extend's SDK 1.20.0 does) and return its id.

        If an answer is lost, the retry may leave an unused copy of the file at Extend.
        """
        form = {"password": file.password} if file.password else {}
        answer = await self._answer("POST", "/files/upload", files={"file": (file.name, content)}, data=form)
        if not answer.is_success:
            raise _FileError(_said(answer))
        try:
            return str(answer.json()["id"])
        except (ValueError, KeyError, TypeError):
            raise _AccountError(f"{self.http.base_url} answered without a file's id: is it Extend?") from None

    async def _answer(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Send a request, with retries, and return an answer that concerns this file only.

        Raises _AccountError if the answer concerns the account, or if every try fails.
        """
        wait, problem = 1.0, ""
        for _ in range(_TRIES):
            pause = None
            try:
                answer = await self.http.request(method, path, **more)
                if answer.status_code in _OF_THE_ACCOUNT:
                    raise _AccountError(f"Extend refuses files of this account: {_said(answer)}")
                if answer.status_code not in _PASSING:
                    return answer
                problem = _said(answer)
                pause = retry_after(answer.headers)
            except (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
                # The request is invalid, so nothing was sent. Do not show the error's text: it may contain the key.
                raise _AccountError(f"no request can be made to {self.http.base_url}: {type(error).__name__}") from None
            except httpx.TransportError as error:
                problem = describe(error)
            await asyncio.sleep(wait if pause is None else pause)
            wait = min(wait * 2, 30)
        raise _AccountError(f"Extend did not accept a file in {_TRIES} attempts: {problem}")


def _said(answer: httpx.Response) -> str:
    return f"{answer.status_code}: {answer.text[:300]}"
