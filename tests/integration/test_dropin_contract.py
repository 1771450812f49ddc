"""Everything that tests/contract asks of an Extend holds for Everyrun's drop-in endpoint: the same tests, unchanged.

The emulator stands behind Everyrun's services. Only the base URL differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.contract import test_emulator_resources, test_emulator_sdk
from tests.contract.conftest import inbox as inbox
from tests.integration.dropin import DropIn

globals().update(
    {
        name: check
        for module in (test_emulator_sdk, test_emulator_resources)
        for name, check in vars(module).items()
        if name.startswith("test_")
    }
)


@pytest.fixture(scope="module")
def behind(
    kafka: str, postgres: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., DropIn]:
    """Return a function that starts an emulator with the given options, and Everyrun in front of it."""

    def start(*options: str) -> DropIn:
        return DropIn(tmp_path_factory.mktemp("dropin"), kafka, postgres, *options).run(tables=True)

    return start


@pytest.fixture
def emulator_with(behind: Callable[..., DropIn]) -> Iterator[Callable[..., DropIn]]:
    started: list[DropIn] = []

    def start(*options: str) -> DropIn:
        started.append(behind(*options))
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.fixture(scope="module")
def emulator(behind: Callable[..., DropIn]) -> Iterator[DropIn]:
    """An emulator without faults whose runs take less than a second, and Everyrun in front of it."""
    running = behind("--run-seconds", "0.05:0.2")
    yield running
    running.end()
