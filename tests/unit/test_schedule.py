"""The schedule decides when to poll a batch and when to sweep a workflow."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from everyrun.reconciler.schedule import Turn, after_failure, after_poll, first_turn, look_back_due, sweep_wait


def test_wait_grows_up_to_eight_times_while_webhooks_arrive() -> None:
    turn, waits = Turn(0.0), []
    for settled in (10, 20, 30, 40, 40):
        turn = after_poll(turn, now=0.0, age=0, every=60, settled=settled, found=0, jitter=0)
        waits.append(turn.due)
    assert waits == [120, 240, 480, 480, 60]
    slowed = Turn(0.0, 4.0, 10)
    assert after_poll(slowed, now=0, age=0, every=60, settled=20, found=1, jitter=0).due == 60
    assert after_failure(slowed, now=0, every=60, jitter=0).due == 60


TURNS = st.builds(Turn, st.just(0.0), st.sampled_from([1.0, 2.0, 4.0, 8.0]), st.integers(0, 1000))


@given(
    turn=TURNS,
    age=st.floats(0, 30 * 86_400),
    settled=st.integers(0, 1000),
    found=st.integers(0, 3),
    jitter=st.floats(0, 1, exclude_max=True),
)
def test_wait_has_bounds_and_a_found_run_never_makes_it_longer(turn, age, settled, found, jitter) -> None:
    def wait(found: int) -> float:
        return after_poll(turn, now=0.0, age=age, every=10, settled=settled, found=found, jitter=jitter).due

    assert 10 <= wait(found) <= max(80, min(age / 20, 3600)) * 1.2
    assert wait(1) <= wait(0)


@given(jitter=st.floats(0, 1, exclude_max=True))
def test_batch_that_waits_a_month_for_a_person_costs_under_a_thousand_polls(jitter) -> None:
    turn, polls = Turn(60.0), 0
    while turn.due < 30 * 86_400:
        turn = after_poll(turn, now=turn.due, age=turn.due, every=60, settled=999, found=0, jitter=jitter)
        polls += 1
    assert 500 < polls < 1000


def test_first_turn_follows_the_poll_of_another_process() -> None:
    assert first_turn(now=100, every=60, polled_ago=None).due == 100
    assert first_turn(now=100, every=60, polled_ago=20).due == 140
    assert first_turn(now=100, every=60, polled_ago=1000).due == 100


@given(took=st.floats(0, 1e4), in_doubt=st.booleans())
def test_sweeps_take_up_to_a_sixth_of_the_time_or_half_of_it_in_doubt(took, in_doubt) -> None:
    wait = sweep_wait(in_doubt=in_doubt, every=300, in_doubt_every=15, took=took)
    assert wait >= (15 if in_doubt else 300)
    assert took <= wait / (2 if in_doubt else 6) + 1e-6
    # A chunk in doubt waits for two sweeps, so a slow sweep must not be followed by a long pause.
    assert not in_doubt or wait <= max(15, took * 2)


def test_sweeps_look_back_at_intervals_that_double_up_to_a_day() -> None:
    looks = [0.0]
    for now in range(300, 30 * 86_400, 300):
        if look_back_due(now, now - looks[-1], 300.0):
            looks.append(now)
    assert looks[:6] == [0.0, 300.0, 600.0, 1200.0, 2400.0, 4800.0]
    assert max(later - one for one, later in pairwise(looks)) == 86_400
    assert len(looks) < 45
    assert look_back_due(10.0, float("inf"), 300.0)
