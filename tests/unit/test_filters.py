"""Filters are read strictly, and no value becomes a part of a statement."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from everyrun.http import InvalidFieldError
from everyrun.query.filters import SORTS, Conditions, Filter, conditions_of, read_filter, read_sort, read_time

NOON = datetime(2026, 3, 3, 12, tzinfo=UTC)


def test_every_filter_is_read() -> None:
    found = read_filter(
        [
            *(("submission_id", "sub_1"), ("batch_id", "b"), ("external_id", "a"), ("text", "acme")),
            *(("status", "FAILED"), ("status", "REFUSED"), ("status", "FAILED"), ("failure_reason", "TIMEOUT")),
            *(("metadata.year", "2026"), ("metadata.a.b", "x=y"), ("settled_since", "2026-03-03T13:00:00+01:00")),
            *(("observed_until", "2026-03-03"), ("limit", "5"), ("cursor", "x")),
        ]
    )
    assert found == Filter(
        submission_id="sub_1",
        batch_id="b",
        external_id="a",
        text="acme",
        status=("FAILED", "REFUSED"),
        failure_reason=("TIMEOUT",),
        metadata=(("a.b", "x=y"), ("year", "2026")),
        settled_since=NOON,
        observed_until=datetime(2026, 3, 3, tzinfo=UTC),
    )
    assert read_filter([], submission_id="sub_2") == Filter(submission_id="sub_2")


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ([("batch_id", "a"), ("batch_id", "b")], "batch_id"),
        ([("metadata.a", "1"), ("metadata.a", "2")], "metadata.a"),
        ([("metadata.", "1")], "metadata."),
        ([("metadata.a", "x\x00")], "metadata.a"),
        ([("text", "")], "text"),
        ([("status", "")], "status"),
        ([("status", "A\n")], "status"),
        ([("failure_reason", "x\x00")], "failure_reason"),
        ([("settled_since", "2026-03-03T12:00:00")], "settled_since"),
        ([("settled_until", "yesterday")], "settled_until"),
        ([("observed_since", "0001-01-01T00:00:00+12:00")], "observed_since"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(given: list[tuple[str, str]], field: str) -> None:
    with pytest.raises(InvalidFieldError) as refused:
        read_filter(given)
    assert refused.value.details() == {"field": field}


def test_a_plus_that_became_a_space_is_explained() -> None:
    with pytest.raises(InvalidFieldError, match="%2B"):
        read_time("settled_since", "2026-03-03T12:00:00 01:00")


def test_values_are_parameters_and_numbered_in_order() -> None:
    hostile = "'; drop table everyrun.results; --"
    wanted = Filter(submission_id="s", status=(hostile,), metadata=((hostile, hostile),), text=hostile)
    found = conditions_of(wanted)
    assert hostile not in found.text
    assert found.values == ["s", [hostile], hostile, hostile, hostile]
    assert "(metadata ->> $4::text = $5::text)" in found.text or "(metadata ->> $3::text = $4::text)" in found.text
    assert found.parameter(7) == "$6"


def test_an_input_of_a_submission_is_found_by_its_key() -> None:
    assert conditions_of(Filter(submission_id="s", external_id="a")).values[0] == "s:a"
    assert conditions_of(Filter()).text == "true"


@pytest.mark.parametrize("name", SORTS)
@pytest.mark.parametrize("minus", ["", "-"])
def test_the_key_of_a_row_is_read_back(name: str, minus: str) -> None:
    row: dict[str, Any] = {"input_id": "sub_1:a/b", "position": 7, "settled_at": NOON, "observed_at": NOON}
    order = read_sort(minus + name)
    found = Conditions()
    order.add_to(found, order.key(row))
    assert found.values == ([row[name]] if name == "input_id" else [row[name], "sub_1:a/b"])
    assert order.text.count(" desc") == (bool(minus) * len({name, "input_id"}))
    assert (" < " in found.text) == bool(minus)


@pytest.mark.parametrize(
    ("sort", "after"),
    [
        ("position", "x/a"),
        ("position", "99999999999/a"),
        ("settled_at", "7/a"),
        ("settled_at", "2026-03-03T12:00:00/a"),
    ],
)
def test_a_malformed_key_is_refused(sort: str, after: str) -> None:
    with pytest.raises(InvalidFieldError, match="malformed"):
        read_sort(sort).add_to(Conditions(), after)


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(InvalidFieldError, match="it must be one of: input_id, position"):
        read_sort("status; drop table x")


def test_only_filters_on_rows_need_rows_to_be_counted() -> None:
    assert not Filter(submission_id="s", status=("FAILED",)).narrows
    assert Filter(submission_id="s", text="x").narrows
