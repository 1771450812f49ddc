"""Presign the objects of a chunk just before its call, and check that they can be read.

The queue, the log and the tables have only the address of an object. A link is made for each attempt and is never
stored, so it is never older than its batch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from everyrun.log import events
from everyrun.objects import (
    Address,
    Bucket,
    Found,
    ObjectCredentialsError,
    ObjectDeniedError,
    ObjectGoneError,
    ObjectStoreUnavailableError,
    parse,
)
from everyrun.submission.dispatch.classify import Blocked, Refused
from everyrun.submission.dispatch.protocol import Unannounced

#: If an object of a bucket was readable within this many seconds, the credentials for the bucket count as good. An
#: object that they do not permit to read is then refused alone.
_READABLE_FOR = 3600.0

NOT_FOUND, CHANGED, DENIED = "OBJECT_NOT_FOUND", "OBJECT_CHANGED", "OBJECT_DENIED"

Files = list[dict[str, Any]]


class Problem(NamedTuple):
    """Why an object cannot be sent. ``status`` is the HTTP status that describes it best."""

    status: int
    code: str
    message: str


class ObjectLinks:
    """Make the files of a batch call from the files in the queue. A process has one."""

    def __init__(
        self,
        lifetime: float,
        timeout: float,
        open_bucket: Callable[[str], Bucket] = Bucket,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``lifetime`` is how long a link is valid, and ``timeout`` how long making the links may take, in seconds."""
        self._lifetime = lifetime
        self._timeout = timeout
        self._open = open_bucket
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}
        self._readable_until: dict[str, float] = {}

    async def files_to_send(self, inputs: Sequence[events.Input]) -> Files | Refused | Blocked | Unannounced:
        """Return the files for a call, with a fresh link in the place of each object, or why there can be no call.

        - Refused names the inputs whose objects are gone, changed since they were listed, or not permitted.
        - Blocked says that the credentials are missing or wrong. It pauses the submission: no input is at fault.
        - Unannounced says that the object store does not answer. The chunk waits and is tried again.
        """
        files = [given.file for given in inputs]
        places = {index: parse(file["object"]) for index, file in enumerate(files) if "object" in file}
        if not places:
            return files
        try:
            async with asyncio.timeout(self._timeout):
                problems = await self._problems(places, files)
                return _refusal(problems) if problems else await self._signed(places, files)
        except (ObjectCredentialsError, ObjectDeniedError) as error:
            return Blocked(str(error), "objects")
        except ObjectStoreUnavailableError as error:
            return Unannounced(f"the object store does not answer: {error}")
        except TimeoutError:
            return Unannounced(f"the object store did not answer within {self._timeout:g} s")

    async def problem_of(self, address: Address) -> str | None:
        """Return why an object cannot be read or presigned, or None."""
        try:
            async with asyncio.timeout(self._timeout):
                bucket = self._bucket(address.bucket)
                await bucket.head(address.key)
                await bucket.sign([address.key], self._lifetime)
        except (ObjectGoneError, ObjectCredentialsError, ObjectDeniedError, ObjectStoreUnavailableError) as error:
            return str(error)
        except TimeoutError:
            return f"the object store did not answer within {self._timeout:g} s"
        return None

    def _bucket(self, url: str) -> Bucket:
        bucket = self._buckets.get(url)
        if bucket is None:
            bucket = self._buckets[url] = self._open(url)
        return bucket

    async def _problems(self, places: Mapping[int, Address], files: Files) -> dict[int, Problem]:
        """Return the problems by the index of the input. Raises ObjectDeniedError if no object is permitted."""
        problems: dict[int, Problem] = {}
        for url, indexes in _by_bucket(places).items():
            found = await self._bucket(url).heads([places[index].key for index in indexes])
            now = self._clock()
            if any(isinstance(one, Found) for one in found):
                self._readable_until[url] = now + _READABLE_FOR
            for index, one in zip(indexes, found, strict=True):
                if isinstance(one, ObjectDeniedError) and self._readable_until.get(url, now) <= now:
                    raise one
                problem = _problem(one, places[index], files[index].get("etag"))
                if problem is not None:
                    problems[index] = problem
        return problems

    async def _signed(self, places: Mapping[int, Address], files: Files) -> Files:
        signed = list(files)
        for url, indexes in _by_bucket(places).items():
            links = await self._bucket(url).sign([places[index].key for index in indexes], self._lifetime)
            for index, link in zip(indexes, links, strict=True):
                name = places[index].key.rpartition("/")[2]
                rest = {field: value for field, value in files[index].items() if field not in ("object", "etag")}
                signed[index] = {"url": link, "name": name, **rest}
        return signed


def _by_bucket(places: Mapping[int, Address]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index, address in places.items():
        found.setdefault(address.bucket, []).append(index)
    return found


def _problem(found: Found | ObjectGoneError | ObjectDeniedError, address: Address, etag: str | None) -> Problem | None:
    match found:
        case ObjectGoneError():
            return Problem(404, NOT_FOUND, f"Everyrun did not send it: there is no object {address} any more")
        case ObjectDeniedError():
            return Problem(403, DENIED, f"Everyrun did not send it: it is not permitted to read {found}")
        case Found() if etag is not None and found.etag is not None and found.etag != etag:
            now = f"its ETag was {etag} and is {found.etag}"
            return Problem(412, CHANGED, f"Everyrun did not send it: {address} changed since it was listed ({now})")
    return None


def _refusal(problems: Mapping[int, Problem]) -> Refused:
    first = problems[min(problems)]
    more = f", and {len(problems) - 1} more inputs" if len(problems) > 1 else ""
    return Refused(first.status, first.code, first.message + more, tuple(sorted(problems)))
