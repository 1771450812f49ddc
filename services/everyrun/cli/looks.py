"""Look at a source several times, and decide which of its files are new, changed, or still changing. Mostly pure."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from everyrun.cli import checks, folder
from everyrun.cli.bucket import BucketObject
from everyrun.cli.folder import Document, shown
from everyrun.cli.manifest import ManifestError
from everyrun.objects import parse_prefix


class Item(NamedTuple):
    """A file or object that was seen in a look."""

    #: Differs whenever the content differs: the ETag of an object, the size and time of a file.
    version: str
    item: Document | BucketObject


class Look(NamedTuple):
    """Holds what one look at a source found: the items that can be sent, by id, and those left out, by reason."""

    items: dict[str, Item]
    skipped: dict[str, list[str]]


class Changes(NamedTuple):
    """Lists the differences between a source and what was submitted before. The lists contain ids, in order."""

    new: list[str]
    changed: list[str]
    #: Files and objects that were not the same in two looks, so they may be incomplete.
    unstable: list[str]
    #: Objects that were submitted before and are not in the source any more, or are left out now.
    gone: list[str]
    known: int


def compare(before: Look, now: Look, submitted: Mapping[str, str]) -> Changes:
    """Compare two looks with the versions that were submitted before, by id. Pure."""
    new, changed, unstable, known = [], [], [], 0
    for name, seen in sorted(now.items.items()):
        if submitted.get(name) == seen.version:
            known += 1
        elif name not in before.items or before.items[name].version != seen.version:
            unstable.append(name)
        elif name in submitted:
            changed.append(name)
        else:
            new.append(name)
    return Changes(new, changed, unstable, sorted(submitted.keys() - now.items.keys()), known)


def name_of(source: str, is_bucket: bool) -> str:
    """Return the name under which the submitted objects of a source are remembered. Raises ObjectAddressError.

    A folder is named with this machine, because another machine may have another folder with the same path.
    """
    if is_bucket:
        prefix = parse_prefix(source)
        return f"{prefix.bucket}/{prefix.key}".removesuffix("/")
    return f"file://{socket.gethostname()}{shown(os.path.realpath(source))}"


def look(source: str, is_bucket: bool, include: Sequence[str], exclude: Sequence[str]) -> Look:
    """Return what a source contains now. Raises ManifestError.

    Files that cannot be read or are empty count as left out: they may be on their way.
    """
    if is_bucket:
        found = checks.list_bucket(source, include, exclude, empty_is_fine=True)
        return Look({one.id: Item(one.version, one) for one in found.objects}, found.skipped)
    if not Path(source).is_dir():
        raise ManifestError(f"there is no folder {shown(source)}")
    files = folder.find(Path(source), include, exclude, empty_is_fine=True)
    files.leave_out_broken()
    items: dict[str, Item] = {}
    for document in files.documents:
        version = version_of(document)
        if version is not None:
            items[document.id] = Item(version, document)
    return Look(items, files.skipped)


def version_of(document: Document) -> str | None:
    """Return the size and time of a file, or None if it is gone."""
    try:
        found = os.stat(document.path)
    except OSError:
        return None
    return f"{found.st_size} bytes, {found.st_mtime_ns} ns"
