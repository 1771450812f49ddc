"""Parse times as people write them: with a time zone, or as an age (-5m)."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from everyrun.errors import Invalid

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGO = re.compile(r"-(?:\d+[smhdw])+")
_PART = re.compile(r"(\d+)([smhdw])")
#: A day, a time and a zone, separated by spaces; RFC 3339 has a T between day and time.
_WRITTEN = re.compile(
    r"(?P<day>today|yesterday|\d{4}-\d{2}-\d{2})"
    r"(?:(?:[Tt]|\s+)(?P<time>\d{1,2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?))?"
    r"\s*(?P<zone>[Zz]|[+-]\d{2}:?\d{2}|[A-Za-z][A-Za-z0-9_+/-]*)?"
)
_EXAMPLES = "2026-03-03T12:00:00Z, '2026-03-03 12:00 Europe/Berlin', 'yesterday 12:00 Europe/Berlin', now, or -5m"


class TimeError(Invalid, ValueError):
    """The text is not a time, or could mean several times; the message shows how to write a time."""


def parse_time(text: str, now: datetime | None = None) -> datetime:
    """Parse a time. Raises TimeError if the text is not a time, or has no time zone.

    Accepted are:

    - RFC 3339: ``2026-03-03T12:00:00Z``;
    - a date, ``today`` or ``yesterday``, with a zone and an optional time: ``yesterday 12:00 Europe/Berlin``. A day
      without a time means the start of the day;
    - ``now``, and ages: ``-5m``, ``-1h30m``, ``-2d``.
    """
    now = now or datetime.now(UTC)
    stripped = text.strip()
    if stripped == "now":
        return now
    if _AGO.fullmatch(stripped):
        try:
            return now - sum((timedelta(**{_UNITS[u]: int(n)}) for n, u in _PART.findall(stripped)), timedelta())
        except OverflowError:
            raise TimeError(f"{text!r} is before the year 1") from None
    written = _WRITTEN.fullmatch(stripped)
    if written is None:
        raise TimeError(f"{text!r} is not a time; write {_EXAMPLES}")
    if written["zone"] is None:
        plain = f"{written['day']} {written['time'] or '00:00'}"
        utc = plain.replace(" ", "T") + "Z" if written["day"][0].isdigit() else f"{plain} UTC"
        raise TimeError(f"{text!r} has no time zone; write '{plain} Europe/Berlin' for a place, or {utc} for UTC")
    zone = _zone(written["zone"])
    try:
        clock = time.fromisoformat(_two_digits(written["time"] or "00:00"))
        day = _day(written["day"], now.astimezone(zone).date())
        return _on_the_clock(datetime.combine(day, clock, zone), text)
    except TimeError:
        raise
    except (ValueError, OverflowError) as error:
        raise TimeError(f"{text!r} is not a time: {error}; write {_EXAMPLES}") from None


def _two_digits(clock: str) -> str:
    return clock if clock[2:3] == ":" else "0" + clock


def _day(written: str, today: date) -> date:
    if written == "today":
        return today
    return today - timedelta(days=1) if written == "yesterday" else date.fromisoformat(written)


def _zone(written: str) -> tzinfo | None:
    if written in ("Z", "z", "UTC", "utc"):
        return UTC
    if written[0] in "+-":
        return datetime.strptime(written, "%z").tzinfo
    try:
        return ZoneInfo(written)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise TimeError(
            f"unknown time zone {written!r}: write a name such as Europe/Berlin, or an offset from UTC such as +02:00. "
            "(If no name works, install the Python package tzdata.)"
        ) from None


def _on_the_clock(moment: datetime, text: str) -> datetime:
    """Convert a local time to UTC. Raises TimeError if, because of a clock change, it occurred twice or never."""
    first, second = (moment.replace(fold=fold).astimezone(UTC) for fold in (0, 1))
    if first == second:
        return first
    if first.astimezone(moment.tzinfo).replace(tzinfo=None) != moment.replace(tzinfo=None, fold=0):
        raise TimeError(f"{text!r}: clocks skipped that time when they were put forward; write it in UTC")
    offsets = " or ".join(f"{m.astimezone(moment.tzinfo):%z}" for m in (first, second))
    raise TimeError(f"{text!r}: clocks showed that time twice; write {offsets} instead of the zone")
