"""List the objects of a bucket, and decide which of them to send. Every object that is not sent is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from everyrun.cli.folder import id_of_path
from everyrun.cli.manifest import ManifestError
from everyrun.cli.patterns import (
    Pattern,
    any_matches,
    check_matched,
    extension_of,
    folded,
    reason_of_file,
    reason_of_folder,
)
from everyrun.errors import EveryrunError
from everyrun.objects import Address, Bucket, Found, ObjectGoneError, parse_prefix

PLACEHOLDER = "folder placeholders"
EMPTY = "empty"
NO_EXTENSION = "without an extension, so their type is not known"


class BucketObject(NamedTuple):
    """An object to send."""

    address: Address
    #: The key relative to the prefix that was listed.
    relative: str
    id: str
    etag: str | None
    #: Changes whenever the content changes: the ETag, or size and time if the store has no ETags.
    version: str


class FoundObjects(NamedTuple):
    """The objects below a prefix: those to send, and the keys of those that are left out, by reason."""

    objects: list[BucketObject]
    skipped: dict[str, list[str]]


def find(
    source: str,
    include: Sequence[str],
    exclude: Sequence[str],
    on_listed: Callable[[int], None],
    empty_is_fine: bool = False,
) -> FoundObjects:
    """List the objects below a prefix such as ``s3://invoices/2026``. Calls ``on_listed`` with the number so far.

    Raises ManifestError if the objects cannot be listed. Raises ManifestError too if there are none, and PatternError
    if a pattern matches nothing, unless ``empty_is_fine``: the objects may come later.
    """
    try:
        prefix = parse_prefix(source)
        listed = asyncio.run(_listed(prefix, on_listed))
    except EveryrunError as error:
        raise ManifestError(f"{source} cannot be listed: {error}") from None
    if isinstance(listed, str):
        if not empty_is_fine:
            raise ManifestError(listed)
        listed = []
    return _choose(prefix, listed, include, exclude, empty_is_fine)


async def _listed(prefix: Address, on_listed: Callable[[int], None]) -> list[Found] | str:
    """Return all objects below the prefix. If there are none, return what to do."""
    bucket = Bucket(prefix.bucket)
    found: list[Found] = []
    async for page in bucket.pages(prefix.key):
        found += page
        on_listed(len(found))
    if found:
        return found
    if prefix.key:
        try:
            await bucket.head(prefix.key)
        except ObjectGoneError:
            pass
        else:
            above, _, name = prefix.key.rpartition("/")
            return (
                f"{prefix} is one object. To send it alone, name the prefix above it: "
                f"{Address(prefix.bucket, above)} --include {name}"
            )
    return f"there is no object below {prefix.bucket}/{prefix.key}"


def _choose(
    prefix: Address, listed: list[Found], include: Sequence[str], exclude: Sequence[str], empty_is_fine: bool
) -> FoundObjects:
    where = f"{prefix.bucket}/{prefix.key}".removesuffix("/")
    chooser = _Chooser(where, include, exclude)
    start = len(prefix.key) + 1 if prefix.key else 0
    names = {found.address.key[start:]: found for found in listed}
    folders = {folder for name in names for folder in _folders_of(name)}
    chosen: list[BucketObject] = []
    skipped: dict[str, list[str]] = {}
    for name in sorted(names):
        found = names[name]
        reason = chooser.reason(name)
        if found.size == 0 and (name in folders or not extension_of(name)):
            reason = PLACEHOLDER
        elif reason is None and found.size == 0:
            reason = EMPTY
        elif reason is None and not extension_of(name):
            reason = NO_EXTENSION
        if reason is not None:
            skipped.setdefault(reason, []).append(name)
            continue
        version = found.etag or f"{found.size} bytes, {found.modified.isoformat()}"
        chosen.append(BucketObject(found.address, name, id_of_path(name), found.etag, version))
    if not empty_is_fine:
        chooser.check_matched()
    return FoundObjects(chosen, skipped)


def _folders_of(name: str) -> list[str]:
    """Return the folders above an object: ``a`` and ``a/b`` for ``a/b/c.pdf``."""
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


class _Chooser:
    """Apply the rules for names to the objects of a bucket, as a folder's walk does to files."""

    def __init__(self, where: str, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._where = where
        self._include = [Pattern("--include", pattern, where) for pattern in include]
        self._exclude = [Pattern("--exclude", pattern, where) for pattern in exclude]
        #: For each folder: why its objects are left out, and if --include matches it or a folder above it.
        self._folders: dict[str, tuple[str | None, bool]] = {"": (None, False)}

    def reason(self, name: str) -> str | None:
        """Return why an object is left out because of its name or the patterns, or None."""
        above, _, last = name.rpartition("/")
        reason, included = self._folder(above)
        matched = folded(name) if self._include or self._exclude else ""
        excluded = any_matches(self._exclude, matched)
        included = any_matches(self._include, matched) or included
        return reason or reason_of_file(last, excluded, bool(self._include) and not included)

    def check_matched(self) -> None:
        """Raise PatternError if a pattern has matched nothing."""
        check_matched(self._where, (*self._include, *self._exclude))

    def _folder(self, name: str) -> tuple[str | None, bool]:
        known = self._folders.get(name)
        if known is None:
            above, _, last = name.rpartition("/")
            reason, included = self._folder(above)
            matched = folded(name) if self._include or self._exclude else ""
            excluded = any_matches(self._exclude, matched)
            included = any_matches(self._include, matched) or included
            known = self._folders[name] = reason or reason_of_folder(last, excluded), included
        return known
