"""Remove secrets from texts, because error messages and log lines can contain a link, a token or a password.

Secrets are recognized in two ways: this module knows the secrets in the settings, which ``settings.load`` passes to it,
and it knows the forms that secrets have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from json import dumps
from urllib.parse import parse_qs, quote, unquote, urlsplit

HIDDEN = "[hidden]"

#: The forms, each with its replacement. In this order: header values in the errors of h11; the user and the query in a
#: URL; values after Bearer or Basic; our tokens; other keys and secrets with a known prefix; rows in Postgres's errors.
_FORMS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(Illegal header value )b?(['\"]).*?\2(?=$|[\s,;)])", re.DOTALL), rf"\1{HIDDEN}"),
    (re.compile(r"([a-z][a-z0-9+.-]*://)[^\s/?#@\"'<>\\]+@", re.IGNORECASE), rf"\1{HIDDEN}@"),
    (re.compile(r"([a-z][a-z0-9+.-]*://[^\s?\"'<>\\]*)\?[^\s\"'<>\\]+", re.IGNORECASE), rf"\1?{HIDDEN}"),
    (re.compile(r"\b(Bearer|Basic)\s+[^\s\"',;\\]+", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (re.compile(r"\b(ert_[0-9a-f]{12})_[0-9a-f]+"), rf"\1_{HIDDEN}"),
    (re.compile(r"\b(sk|wss|whsec|ert)_[A-Za-z0-9+/=_-]{16,}"), rf"\1_{HIDDEN}"),
    (re.compile(r"(DETAIL: )(?:[^\\\n\"]|\\[^n])*"), rf"\1{HIDDEN}"),
)


#: Minimum length of a secret that is hidden. A shorter secret may occur by chance in another text, which would then be
#: hidden too.
_LEAST = 6
_known: set[str] = set()
_exact: re.Pattern[str] | None = None


def remember(secrets: Iterable[str]) -> None:
    """Make :func:`redact` hide these secrets from now on, even where they are escaped as in JSON, Python or a URL.

    Secrets of fewer than six characters are not hidden.
    """
    global _exact
    for text in secrets:
        if len(text) >= _LEAST:
            _known.update((text, dumps(text)[1:-1], repr(text)[1:-1], ascii(text)[1:-1], quote(text, safe="")))
    if _known:
        _exact = re.compile("|".join(re.escape(text) for text in sorted(_known, key=len, reverse=True)))


def passwords_of(dsn: str) -> list[str]:
    """Return the passwords that a Postgres dsn contains, before the host or as a parameter.

    If the dsn is not a URL, return none.
    """
    try:
        parts = urlsplit(dsn)
        given = [unquote(parts.password or ""), *parse_qs(parts.query).get("password", [])]
    except ValueError:
        return []
    return [password for password in given if password]


def redact(text: str) -> str:
    """Return a text without the secrets that this module knows, and without anything that has the form of a secret."""
    if _exact is not None:
        text = _exact.sub(HIDDEN, text)
    for form, instead in _FORMS:
        text = form.sub(instead, text)
    return text


def describe(error: BaseException) -> str:
    """Return an error's type and text without secrets, so that they can be stored and shown.

    This is necessary because the text of a library's error can contain what the library was given: a header, a URL, a
    row.
    """
    return redact(readable(f"{type(error).__name__}: {error}".removesuffix(": ")))


#: A broker's address in the text of aiokafka's errors: ``('127.0.0.1', 9092, <AddressFamily.AF_INET: 2>)``.
_ADDRESS = re.compile(r"\(['\"]([^'\"]+)['\"], (\d+)(?:, <[^>]*>)?\)")
_DOUBLED = re.compile(r"\b(\w+): (?=\1\b: )")


def readable(text: str) -> str:
    """Return an error's text without immediate repetitions of the type's name, and with addresses as ``host:port``."""
    return _DOUBLED.sub("", _ADDRESS.sub(r"\1:\2", text))
