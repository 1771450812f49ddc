"""The Extend that a queue is bound to is identified, and another one is reported."""

from __future__ import annotations

import pytest

from everyrun.extend.installation_binding import EMULATOR, difference, identity


@pytest.mark.parametrize(
    ("url", "mark"),
    [
        ("http://127.0.0.1:9000", EMULATOR),
        ("http://127.0.0.2:1", EMULATOR),
        ("http://[::1]:9000", EMULATOR),
        ("http://localhost:9000", EMULATOR),
        ("https://api.extend.ai", "https://api.extend.ai"),
        ("https://api.extend.ai/", "https://api.extend.ai"),
        ("https://127.0.0.1.example.com", "https://127.0.0.1.example.com"),
        ("http://10.0.0.7:9000", "http://10.0.0.7:9000"),
    ],
)
def test_identity_of_an_extend(url: str, mark: str) -> None:
    assert identity(url) == mark


def test_difference_names_the_bound_and_the_given_extend() -> None:
    assert difference(EMULATOR, EMULATOR) is None
    for kept, given in ((EMULATOR, "https://api.extend.ai"), ("https://api.extend.ai", EMULATOR)):
        said = difference(kept, given)
        assert said is not None
        assert f"bound to the Extend {kept}" in said
        assert f"names {given}" in said
