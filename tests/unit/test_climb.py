"""More tokens in a micro-step as long as that is measured to be faster, and fits."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from trial_worker.engine.capacity import slots_within
from trial_worker.engine.climb import Climb


def settled(climb: Climb, rate: Callable[[int], float], used: Callable[[int], float] = lambda _: 0.1) -> int:
    """Where it ends, with full micro-steps only."""
    for _ in range(200):
        climb.after(climb.tokens, climb.tokens / rate(climb.tokens), used(climb.tokens))
    return climb.tokens


def test_it_climbs_while_it_pays_and_takes_the_last_step_back() -> None:
    speeds = {1000: 10.0, 2000: 15.0, 4000: 20.0, 8000: 20.5}
    assert settled(Climb(1000, 100_000), speeds.__getitem__) == 4000


def test_it_stops_where_twice_as_much_would_not_fit() -> None:
    assert settled(Climb(1000, 100_000), float, lambda tokens: tokens / 8000) == 4000


def test_it_never_exceeds_its_bound() -> None:
    assert settled(Climb(1000, 5000), float) == 4000
    assert settled(Climb(1000, 1500), float) == 1000


def test_micro_steps_that_are_not_full_and_the_first_of_a_size_say_nothing() -> None:
    climb = Climb(1000, 100_000)
    for _ in range(100):
        assert climb.after(700, 1.0, 0.1) == 1000
    for _ in range(6):
        assert climb.after(1000, 1.0, 0.1) == 1000
    assert climb.after(1000, 1.0, 0.1) == 2000


@given(st.lists(st.tuples(st.floats(0.1, 1), st.floats(0, 10), st.floats(0, 1)), max_size=300))
def test_whatever_is_measured_it_stays_a_doubling_within_bounds(steps: list[tuple[float, float, float]]) -> None:
    climb = Climb(512, 16_384)
    for share, seconds, used in steps:
        climb.after(int(share * climb.tokens), seconds, used)
        assert climb.tokens in {512 * 2**power for power in range(6)}


def test_adapters_leave_room_for_activations_and_one_slot_there_always_is() -> None:
    assert slots_within(32, 10, None) == 32
    assert slots_within(32, 100, 10_000) == 32
    assert slots_within(32, 1000, 10_000) == 4
    assert slots_within(32, 1_000_000, 10_000) == 1
