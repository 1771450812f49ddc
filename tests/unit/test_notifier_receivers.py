"""Secrets of receivers have the form that their consumers expect, and are never in an error."""

from __future__ import annotations

import pytest

from everyrun.http import InvalidFieldError
from everyrun.notifier.receivers import checked_secret, new_secret, shown_url
from everyrun.standard_webhooks import is_secret


def test_a_new_secret_has_the_form_of_its_format() -> None:
    assert new_secret("extend").startswith("wss_")
    assert len(new_secret("extend")) == len("wss_") + 32
    assert is_secret(new_secret("everyrun"))
    assert len({new_secret("extend") for _ in range(100)}) == 100


def test_a_given_secret_is_kept_as_it_is() -> None:
    assert checked_secret("extend", "wss_of_my_consumer_1") == "wss_of_my_consumer_1"
    own = new_secret("everyrun")
    assert checked_secret("everyrun", own) == own


@pytest.mark.parametrize("given", ["", "short", "with a space in it", "wss_0123456789\n", "x" * 201, "ü" * 20])
def test_a_secret_that_is_weak_or_unusable_is_refused_without_showing_it(given: str) -> None:
    for format in ("extend", "everyrun"):
        with pytest.raises(InvalidFieldError) as caught:
            checked_secret(format, given)  # type: ignore[arg-type]
        assert not given or given not in str(caught.value)


def test_a_url_is_shown_without_its_query() -> None:
    assert shown_url("https://app.example.com/hooks?key=secret") == "https://app.example.com/hooks?[hidden]"
