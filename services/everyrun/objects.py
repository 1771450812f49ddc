"""List, check and presign objects in S3, Google Cloud Storage and Azure Blob Storage (s3://, gs://, az://).

The credentials come from the usual environment variables of each provider, such as AWS_ACCESS_KEY_ID, and from the
identity of the machine. docs/how-to/sources.md lists them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from everyrun.errors import EveryrunError, Invalid, NotFound, Unavailable
from everyrun.redact import redact

#: The schemes of object addresses.
SCHEMES = ("s3", "gs", "az")
#: The longest time for which a link can be presigned, in seconds: S3 and Google Cloud Storage allow seven days
#: (docs.aws.amazon.com, "Download and upload objects with presigned URLs"; cloud.google.com, "V4 signing process").
MAX_LIFETIME = 604_800
#: Maximum number of concurrent requests to a bucket.
_AT_ONCE = 64
_RETRIES = {"max_retries": 2, "retry_timeout": timedelta(seconds=20)}

_BUCKET = re.compile(r"(s3|gs|az)://[A-Za-z0-9$][A-Za-z0-9._-]{1,254}")
#: Texts of obstore's errors that mean that no credentials were found, or that the provider does not accept them. If
#: none are set, the client asks the machine's metadata service for some, which fails outside of a cloud.
_OF_CREDENTIALS = re.compile(
    r"169\.254\.|metadata\.google|account must be specified|token request|credential|InvalidAccessKeyId"
    r"|SignatureDoesNotMatch|ExpiredToken|InvalidToken|AuthenticationFailed",
    re.IGNORECASE,
)


class ObjectAddressError(Invalid):
    """A text is not the address of an object."""


class ObjectGoneError(NotFound):
    """There is no such object."""


class ObjectDeniedError(EveryrunError):
    """The credentials do not permit to read the object. S3 says this of a missing object too, without ListBucket."""


class ObjectCredentialsError(EveryrunError):
    """There are no credentials for the bucket, or the provider does not accept them."""


class ObjectStoreUnavailableError(Unavailable):
    """The object store does not answer, or answers with an error that may pass."""


class Address(NamedTuple):
    """The address of an object."""

    #: The bucket as a URL, such as ``s3://invoices``.
    bucket: str
    #: The object's key, exactly as the store has it: nothing in it is percent-encoded.
    key: str

    def __str__(self) -> str:
        return f"{self.bucket}/{self.key}"


class Found(NamedTuple):
    """An object of a bucket."""

    address: Address
    size: int
    #: The ETag without quotes, or None if the store has none. It changes whenever the content changes.
    etag: str | None
    modified: datetime


def is_address(text: str) -> bool:
    """Return True if a text begins with the scheme of an object address."""
    return text.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def parse_prefix(text: str) -> Address:
    """Return the bucket and prefix (without a slash at its end, "" for the whole bucket) that a text names.

    Raises ObjectAddressError.
    """
    matched = _BUCKET.match(text)
    rest = text[matched.end() :] if matched else ""
    if not matched or rest[:1] not in ("", "/"):
        raise ObjectAddressError("is not an address of the form s3://BUCKET/KEY, gs://BUCKET/KEY or az://CONTAINER/KEY")
    prefix = rest.removeprefix("/").removesuffix("/")
    if prefix and (problem := _problem_of_key(prefix)):
        raise ObjectAddressError(problem)
    return Address(matched[0], prefix)


def parse(text: str) -> Address:
    """Return the address that a text names. Raises ObjectAddressError."""
    address = parse_prefix(text)
    if not address.key or text.endswith("/"):
        raise ObjectAddressError("names no object: a key is missing after the bucket, or it ends in a slash")
    return address


def _problem_of_key(key: str) -> str | None:
    """Return why a key cannot be used, or None. The client library would change such a key, or refuse it."""
    if any(part in ("", ".", "..") for part in key.split("/")):
        return "has an empty part, a . or a .. between slashes, which cannot be addressed; rename the object"
    if any(ord(character) < 32 or ord(character) == 127 for character in key):
        return "has a control character, which cannot be addressed; rename the object"
    return None


class Bucket:
    """A bucket with the credentials of this process.

    Methods raise ObjectCredentialsError, ObjectDeniedError and ObjectStoreUnavailableError.
    """

    def __init__(self, url: str) -> None:
        """Open a bucket by its URL, such as ``s3://invoices``. No request is sent."""
        # Imported only here, because most installations use no buckets, and the import takes time and memory.
        from obstore.store import from_url

        self.url = url
        retries: Any = _RETRIES
        try:
            # Options for the HTTP client would replace those of the environment, such as AWS_ALLOW_HTTP and a proxy.
            self._store: Any = from_url(url, retry_config=retries)
        except Exception as error:
            raise _translated(error, url) from None

    async def pages(self, prefix: str) -> AsyncIterator[Sequence[Found]]:
        """Yield the objects below a prefix, which ends at a slash: ``2026`` does not match ``2026-old/a.pdf``.

        A folder placeholder, whose key ends in a slash, appears without the slash. Raises ObjectAddressError if the
        store has a key that cannot be addressed.
        """
        import obstore
        from obstore.exceptions import InvalidPathError

        try:
            async for page in obstore.list(self._store, prefix=prefix or None):
                yield [self._found(meta) for meta in page]
        except InvalidPathError as error:
            raise ObjectAddressError(
                f"has an object with a key that cannot be addressed: {_first_line(error)}. Rename that object, or "
                "list the folders beside it"
            ) from None
        except Exception as error:
            raise _translated(error, f"{self.url}/{prefix}") from None

    async def head(self, key: str) -> Found:
        """Return what the store knows about an object. Raises ObjectGoneError too."""
        import obstore

        try:
            return self._found(await obstore.head_async(self._store, key))
        except Exception as error:
            raise _translated(error, f"{self.url}/{key}") from None

    async def heads(self, keys: Sequence[str]) -> list[Found | ObjectGoneError | ObjectDeniedError]:
        """Return what the store knows about objects, in the order of the keys, or that they are gone or denied."""
        room = asyncio.Semaphore(_AT_ONCE)

        async def one(key: str) -> Found | ObjectGoneError | ObjectDeniedError:
            async with room:
                try:
                    return await self.head(key)
                except (ObjectGoneError, ObjectDeniedError) as error:
                    return error

        tasks = [asyncio.ensure_future(one(key)) for key in keys]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def sign(self, keys: Sequence[str], lifetime: float) -> Sequence[str]:
        """Return a link to each object with which anyone can read it for ``lifetime`` seconds from now.

        If the credentials are temporary, a link works no longer than they do.
        """
        import obstore

        try:
            return list(await obstore.sign_async(self._store, "GET", list(keys), timedelta(seconds=lifetime)))
        except Exception as error:
            raise _translated(error, self.url) from None

    def _found(self, meta: Mapping[str, Any]) -> Found:
        etag = meta["e_tag"]
        # Azure quotes ETags in answers to HEAD, but not in lists.
        plain = etag.removeprefix("W/").strip('"') if etag else None
        return Found(Address(self.url, meta["path"]), meta["size"], plain or None, meta["last_modified"])


def _translated(error: Exception, what: str) -> EveryrunError:
    """Return obstore's error as one of this module's, with a text without secrets that fits on a line."""
    from obstore.exceptions import NotFoundError, PermissionDeniedError, UnauthenticatedError

    if isinstance(error, EveryrunError):
        return error
    if isinstance(error, FileNotFoundError | NotFoundError):
        return ObjectGoneError(f"there is no object {what}")
    text = f"{what}: {_first_line(error)}"
    if isinstance(error, UnauthenticatedError) or _OF_CREDENTIALS.search(str(error)):
        return ObjectCredentialsError(text)
    if isinstance(error, PermissionDeniedError | PermissionError):
        return ObjectDeniedError(text)
    return ObjectStoreUnavailableError(text)


def _first_line(error: Exception) -> str:
    return redact(str(error).partition("\n")[0])[:500]
