"""Faults: read from text, decided by the seed alone."""

from __future__ import annotations

import random

import pytest

from everyrun.emulator.faults import DEFAULTS, FAULTS, Dice, InvalidFaultsError, parse_faults


def test_none_and_default_are_parsed():
    assert parse_faults("none") == parse_faults("") == {}
    assert parse_faults("default") == DEFAULTS
    assert set(DEFAULTS) <= set(FAULTS)


def test_a_list_replaces_the_defaults():
    assert parse_faults("drop=1.0, duplicate=0.2,slow=3,skew=-400") == {
        "drop": 1.0,
        "duplicate": 0.2,
        "slow": 3.0,
        "skew": -400.0,
    }


@pytest.mark.parametrize("value", ["", "=", "=x", "=1.1", "=-0.1", "=nan", "=inf"])
@pytest.mark.parametrize("name", ["drop", "fail"])
def test_a_rate_is_from_0_to_1(name: str, value: str):
    with pytest.raises(InvalidFaultsError, match=f"^{name}"):
        parse_faults(f"duplicate=1,{name}{value}")


@pytest.mark.parametrize("text", ["slow=-1", "slow=nan", "delay=inf", "skew=nan", "list_lag=x"])
def test_a_time_is_a_finite_number_of_seconds(text: str):
    with pytest.raises(InvalidFaultsError, match=f"^{text.partition('=')[0]}"):
        parse_faults(text)


@pytest.mark.parametrize("text", ["copies=0.5", "copies=-1", "copies=101", "copies=nan", "copies=many"])
def test_a_count_is_a_whole_number_that_is_not_too_large(text: str):
    with pytest.raises(InvalidFaultsError, match=r"^copies"):
        parse_faults(text)
    assert parse_faults("copies=9") == {"copies": 9.0}


def test_the_error_for_an_unknown_fault_lists_all_faults():
    with pytest.raises(InvalidFaultsError, match=r"unknown fault 'dorp'.*duplicate, copies, .*review"):
        parse_faults("drop=1,dorp=1")


def test_choices_do_not_depend_on_the_order_of_calls():
    subjects = [f"event_{n}" for n in range(500)]
    first = {s: Dice(7, {"drop": 0.3}).strikes("drop", s) for s in subjects}
    random.Random(1).shuffle(subjects)
    dice = Dice(7, {"drop": 0.3, "fail": 0.9})
    assert {s: dice.strikes("drop", s) for s in subjects} == first
    assert {s: Dice(8, {"drop": 0.3}).strikes("drop", s) for s in subjects} != first
    assert 100 < sum(first.values()) < 200


def test_rates_of_0_and_1_strike_never_and_always():
    dice = Dice(1, {"drop": 0.0, "fail": 1.0, "slow": 2.0})
    subjects = [str(n) for n in range(300)]
    assert not any(dice.strikes("drop", s) or dice.strikes("late", s) for s in subjects)
    assert all(dice.strikes("fail", s) for s in subjects)
    assert all(0 <= dice.seconds("slow", s) < 2 and dice.seconds("delay", s) == 0 for s in subjects)
