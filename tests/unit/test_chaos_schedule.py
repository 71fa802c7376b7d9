"""Which fault comes when: seeded, and as many kills as were asked for."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.chaos.schedule import KILLS, OTHERS, Kind, plan


def test_equal_seeds_give_equal_plans_and_others_differ() -> None:
    assert plan(3, 40) == plan(3, 40)
    assert plan(3, 40) != plan(4, 40)


@pytest.mark.parametrize("kills", [0, 1, 2, 40, 333])
def test_it_kills_just_so_many_processes(kills: int) -> None:
    assert sum(fault.kills for fault in plan(5, kills)) == kills


def test_every_fault_comes_in_its_proportion() -> None:
    found = Counter(fault.kind for fault in plan(1, 4000))
    assert set(found) == set(Kind) == set(KILLS) | set(OTHERS)
    for kind, (share, _, _) in OTHERS.items():
        assert found[kind] == pytest.approx(share * 100, abs=1)
    assert found[Kind.KILL_SUPERVISOR] > found[Kind.KILL_TRAINER] > found[Kind.KILL_BOTH]


def test_what_lasts_keeps_within_its_bounds() -> None:
    for fault in plan(2, 400):
        _, low, high = OTHERS.get(fault.kind, (0, 0, 0))
        assert low <= fault.seconds <= high
        assert 0 <= fault.pick < 1
        assert 0 < fault.gap < 10


def test_a_short_run_begins_its_long_pauses_early() -> None:
    plans = [plan(seed, 25) for seed in range(20)]
    places = [i for faults in plans for i, fault in enumerate(faults) if fault.kind == Kind.PAUSE_LONG]
    assert places
    assert max(places) <= 3
