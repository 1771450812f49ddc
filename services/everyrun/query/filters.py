"""Read the filters and the order of a request for results, and make conditions of SQL from them. Pure.

The conditions are the texts of ``filters.sql``, joined with ``and``. Values are always parameters of the statement, so
no value can change the statement.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from everyrun.http import InvalidFieldError
from everyrun.query.paging import check_text, malformed_cursor
from everyrun.store.sql import Row, beside

_sql = beside(__file__, "filters.sql")
_PARAMETER = re.compile(r"\$(\d+)")

#: The statuses of inputs that were not sent.
UNSENT = ("WAITING", "SENDING", "IN_DOUBT")
#: The statuses that the filter accepts: Everyrun's, and Extend's (SDK 1.20.0, types/workflow_run_status.py). A status
#: that Extend adds later is accepted as soon as an input has it.
STATUSES = (
    *(*UNSENT, "REFUSED", "SUBMITTED"),
    *("PENDING", "PROCESSING", "CANCELLING", "NEEDS_REVIEW", "PROCESSED", "FAILED", "CANCELLED", "REJECTED"),
)
#: A filter on one field of the metadata is named by this prefix and the field.
METADATA = "metadata."
_TIMES = ("settled_since", "settled_until", "observed_since", "observed_until")
_LISTS = ("status", "failure_reason")
_ONES = ("submission_id", "batch_id", "external_id")
#: The names of all filters except those on metadata.
NAMES = (*_ONES, *_LISTS, *_TIMES, "text")
#: The columns by which results can be sorted. A minus before the name reverses the order.
SORTS = ("input_id", "position", "observed_at", "settled_at")


class Filter(Struct, frozen=True, kw_only=True):
    """Describes the inputs that a request asks for. An input fits if it fits every field that is set.

    The lists ``status`` and ``failure_reason`` name alternatives. ``settled_until`` and ``observed_until`` are the
    first moments that do not fit.
    """

    submission_id: str | None = None
    batch_id: str | None = None
    external_id: str | None = None
    status: tuple[str, ...] = ()
    failure_reason: tuple[str, ...] = ()
    settled_since: datetime | None = None
    settled_until: datetime | None = None
    observed_since: datetime | None = None
    observed_until: datetime | None = None
    text: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()

    def named(self) -> dict[str, Any]:
        """Return the fields that are set, by name. A cursor is bound to them."""
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}

    @property
    def narrows(self) -> bool:
        """True if a field other than the submission and the status is set. Stored counters do not suffice then."""
        return bool(self.named().keys() - {"submission_id", "status"})


def read_filter(given: Iterable[tuple[str, str]], **more: str | None) -> Filter:
    """Return the filter in the query parameters of a request. Parameters that are not filters are ignored.

    ``more`` are parameters that the path contains. Raises InvalidFieldError, which names the parameter, if a value
    cannot be used, or if a parameter that has only one value is given twice.
    """
    found: dict[str, Any] = {name: value for name, value in more.items() if value is not None}
    metadata: dict[str, str] = {}
    for name, value in given:
        if name.startswith(METADATA):
            _once(name, metadata)
            metadata[name] = _stored(name, value)
            continue
        if name not in NAMES:
            continue
        if name in _LISTS:
            check_text(**{name: value})
            found[name] = tuple(dict.fromkeys((*found.get(name, ()), value)))
            continue
        _once(name, found)
        if name in _TIMES:
            found[name] = read_time(name, value)
        else:
            found[name] = _stored(name, value)
            if name in _ONES:
                check_text(**{name: value})
    fields = tuple(sorted((name.removeprefix(METADATA), value) for name, value in metadata.items()))
    if fields and not fields[0][0]:
        raise InvalidFieldError(METADATA, "lacks the name of a field, as in metadata.invoice=A-17")
    for name, value in found.items():
        if value == "" or (name in _LISTS and "" in value):
            raise InvalidFieldError(name, "is empty; leave it out, or give a value")
    return Filter(**found, metadata=fields)


def _once(name: str, found: Mapping[str, Any]) -> None:
    if name in found:
        raise InvalidFieldError(name, "is given twice; only status and failure_reason can be repeated")


def _stored(name: str, value: str) -> str:
    if "\x00" in value or "\x00" in name:
        raise InvalidFieldError(name.replace("\x00", ""), "has a NUL character")
    return value


def read_time(name: str, value: str) -> datetime:
    """Return the moment that RFC 3339 text names. A date alone is its midnight in UTC. Raises InvalidFieldError."""
    try:
        moment = datetime.fromisoformat(value)
        if len(value) == len("2026-03-03"):
            moment = moment.replace(tzinfo=UTC)
        return moment.astimezone(UTC) if moment.tzinfo else _no_time(name, value)
    except (ValueError, OverflowError):
        return _no_time(name, value)


def _no_time(name: str, value: str) -> datetime:
    hint = "; in a URL, write the + of an offset as %2B" if " " in value else ""
    raise InvalidFieldError(
        name, f"{value!r} is not a time with an offset, such as 2026-03-03T12:00:00Z, and not a date{hint}"
    )


class Conditions:
    """Conditions that are joined with ``and``, and the values of their parameters."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self.values: list[Any] = []

    def add(self, name: str, *values: Any) -> None:
        """Add a condition of ``filters.sql``."""
        first = len(self.values)
        text = re.sub(r"^--.*\n", "", _sql[name], flags=re.MULTILINE)
        self._texts.append(f"({_PARAMETER.sub(lambda match: f'${first + int(match[1])}', text)})")
        self.values += values

    def parameter(self, value: Any) -> str:
        """Add a value, and return its placeholder."""
        self.values.append(value)
        return f"${len(self.values)}"

    @property
    def text(self) -> str:
        """The condition; ``true`` if there is none."""
        return " and ".join(self._texts) or "true"


def conditions_of(wanted: Filter) -> Conditions:
    """Return the conditions that rows of ``results`` must fulfil to fit a filter."""
    found = Conditions()
    if wanted.submission_id is not None and wanted.external_id is not None:
        found.add("input_id", f"{wanted.submission_id}:{wanted.external_id}")
    elif wanted.external_id is not None:
        found.add("external_id", wanted.external_id)
    for name, value in wanted.named().items():
        if name == "metadata":
            for field, text in value:
                found.add("metadata", field, text)
        elif name in _LISTS:
            found.add(name, list(value))
        elif name != "external_id":
            found.add(name, value)
    return found


class Order(Struct, frozen=True):
    """The column by which results are sorted, and the direction. Inputs with the same value are sorted by their id."""

    column: str = "input_id"
    descending: bool = False

    @property
    def text(self) -> str:
        """The columns for ``order by``."""
        direction = " desc" if self.descending else ""
        return ", ".join(f"{column}{direction}" for column in dict.fromkeys((self.column, "input_id")))

    def add_to(self, conditions: Conditions, after: str | None) -> None:
        """Add what an order and a cursor require: a value to sort by, and a place after the last row that was shown.

        ``after`` is a text that :meth:`key` made, or None for the first page. Raises InvalidFieldError for any other
        text.
        """
        if self.column in ("settled_at", "observed_at"):
            conditions.add(f"has_{self.column}")
        if after is None:
            return
        name = f"{'before' if self.descending else 'after'}_{self.column}"
        if self.column == "input_id":
            conditions.add(name, after)
            return
        value, _, input_id = after.partition("/")
        try:
            conditions.add(name, _KINDS[self.column](value), input_id)
        except (ValueError, OverflowError):
            raise malformed_cursor() from None

    def key(self, row: Row) -> str:
        """Return the place of a row in this order, for a cursor."""
        if self.column == "input_id":
            return str(row["input_id"])
        value = row[self.column]
        return f"{value.isoformat() if isinstance(value, datetime) else value}/{row['input_id']}"


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(text)
    return moment


def _number(text: str) -> int:
    if not (text.isdecimal() and len(text) < 10):
        raise ValueError(text)
    return int(text)


_KINDS: dict[str, Callable[[str], Any]] = {"position": _number, "settled_at": _moment, "observed_at": _moment}


def read_sort(sort: str | None) -> Order:
    """Return the order that the parameter ``sort`` names. Raises InvalidFieldError if there is none of this name."""
    column = (sort or "input_id").removeprefix("-")
    if column not in SORTS:
        raise InvalidFieldError(
            "sort", f"{sort!r} is unknown; it must be one of: {', '.join(SORTS)}, each also with a minus"
        )
    return Order(column, (sort or "").startswith("-"))
