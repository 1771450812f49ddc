"""Texts without secrets: what is said by others, and what goes into a log, may hold a link, a token or a password."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from json import dumps
from urllib.parse import quote

HIDDEN = "[hidden]"

#: The user of a URL, its query; what follows Bearer or Basic; tokens and keys by their form; rows in Postgres's errors.
_FORMS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"([a-z][a-z0-9+.-]*://)[^\s/?#@\"'<>\\]+@", re.IGNORECASE), rf"\1{HIDDEN}@"),
    (re.compile(r"([a-z][a-z0-9+.-]*://[^\s?\"'<>\\]*)\?[^\s\"'<>\\]+", re.IGNORECASE), rf"\1?{HIDDEN}"),
    (re.compile(r"\b(Bearer|Basic)\s+[^\s\"',;\\]+", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (re.compile(r"\b(ert_[0-9a-f]{12})_[0-9a-f]+"), rf"\1_{HIDDEN}"),
    (re.compile(r"\b(sk|wss|whsec|ert)_[A-Za-z0-9+/=_-]{16,}"), rf"\1_{HIDDEN}"),
    (re.compile(r"(DETAIL: )(?:[^\\\n\"]|\\[^n])*"), rf"\1{HIDDEN}"),
)


def redact(text: str) -> str:
    """The text without what looks like a secret."""
    for form, instead in _FORMS:
        text = form.sub(instead, text)
    return text


def redactor(secrets: Iterable[str]) -> Callable[[str], str]:
    """:func:`redact` that also takes out the very texts of ``secrets``, as they are and as JSON or a URL hold them."""
    known = {form for text in secrets if len(text) >= 6 for form in (text, dumps(text)[1:-1], quote(text, safe=""))}
    if not known:
        return redact
    exact = re.compile("|".join(re.escape(text) for text in sorted(known, key=len, reverse=True)))
    return lambda text: redact(exact.sub(HIDDEN, text))
