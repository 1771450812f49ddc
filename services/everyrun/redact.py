"""Remove secrets from texts. Error messages and log lines may hold a link, a token or a password.

Only this module knows the installation's secrets. ``settings.load`` passes them to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from json import dumps
from urllib.parse import parse_qs, quote, unquote, urlsplit

HIDDEN = "[hidden]"

#: Header values that h11 refuses to send; the user and the query of a URL; values after Bearer or Basic; tokens and
#: keys by their form; rows in Postgres's errors.
_FORMS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(Illegal header value )b?(['\"]).*?\2(?=$|[\s,;)])", re.DOTALL), rf"\1{HIDDEN}"),
    (re.compile(r"([a-z][a-z0-9+.-]*://)[^\s/?#@\"'<>\\]+@", re.IGNORECASE), rf"\1{HIDDEN}@"),
    (re.compile(r"([a-z][a-z0-9+.-]*://[^\s?\"'<>\\]*)\?[^\s\"'<>\\]+", re.IGNORECASE), rf"\1?{HIDDEN}"),
    (re.compile(r"\b(Bearer|Basic)\s+[^\s\"',;\\]+", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (re.compile(r"\b(ert_[0-9a-f]{12})_[0-9a-f]+"), rf"\1_{HIDDEN}"),
    (re.compile(r"\b(sk|wss|whsec|ert)_[A-Za-z0-9+/=_-]{16,}"), rf"\1_{HIDDEN}"),
    (re.compile(r"(DETAIL: )(?:[^\\\n\"]|\\[^n])*"), rf"\1{HIDDEN}"),
)


#: Minimum length of a secret to be hidden. Shorter texts are too common.
_LEAST = 6
_known: set[str] = set()
_exact: re.Pattern[str] | None = None


def remember(secrets: Iterable[str]) -> None:
    """Hide these texts from now on in every text of this process, also as JSON, Python or a URL would write them.

    Texts of fewer than six characters are not hidden.
    """
    global _exact
    for text in secrets:
        if len(text) >= _LEAST:
            _known.update((text, dumps(text)[1:-1], repr(text)[1:-1], ascii(text)[1:-1], quote(text, safe="")))
    if _known:
        _exact = re.compile("|".join(re.escape(text) for text in sorted(_known, key=len, reverse=True)))


def passwords_of(dsn: str) -> list[str]:
    """Return the passwords in a Postgres dsn, before the host or as a parameter. Return none if it is not a URL."""
    try:
        parts = urlsplit(dsn)
        given = [unquote(parts.password or ""), *parse_qs(parts.query).get("password", [])]
    except ValueError:
        return []
    return [password for password in given if password]


def redact(text: str) -> str:
    """Return a text without the installation's secrets, and without anything that looks like a secret."""
    if _exact is not None:
        text = _exact.sub(HIDDEN, text)
    for form, instead in _FORMS:
        text = form.sub(instead, text)
    return text


def describe(error: BaseException) -> str:
    """Return an error's type and text without secrets, safe to store and to show.

    The text of a library's error may hold its input: a header, an address, a row.
    """
    return redact(readable(f"{type(error).__name__}: {error}".removesuffix(": ")))


#: The addresses that aiokafka could not reach: ``[('127.0.0.1', 9092, <AddressFamily.AF_INET: 2>)]``.
_ADDRESS = re.compile(r"\(['\"]([^'\"]+)['\"], (\d+)(?:, <[^>]*>)?\)")
_DOUBLED = re.compile(r"\b(\w+): (?=\1\b: )")


def readable(text: str) -> str:
    """Return an error's text with each type named once, and addresses as ``host:port``."""
    return _DOUBLED.sub("", _ADDRESS.sub(r"\1:\2", text))
