"""Decisions about trials and studies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import lifecycle
from orchestrator.reading import TRIAL_STATES


def test_every_state_is_open_or_told_to_optuna() -> None:
    assert set(TRIAL_STATES) == {"waiting", "running"} | set(lifecycle.TOLD)
    assert {state for state, told in lifecycle.TOLD.items() if told == "COMPLETE"} == {"complete"}


@pytest.mark.parametrize(("trials", "startup"), [(1, 4), (12, 4), (16, 4), (20, 5), (40, 10), (1000, 10)])
def test_startup_is_a_quarter_between_4_and_10(trials: int, startup: int) -> None:
    assert lifecycle.startup_trials(trials) == startup


@pytest.mark.parametrize(
    ("sampler", "trials", "workers", "cap"),
    [
        ("tpe", 12, 1, 3),
        ("tpe", 12, 8, 8),
        ("gp", 100, 2, 20),
        ("tpe", 1, 0, 1),
        ("grid", 9, 1, None),
        ("random", 9, 1, None),
    ],
)
def test_model_based_samplers_open_few_trials_at_once(sampler: str, trials: int, workers: int, cap: int | None) -> None:
    assert lifecycle.open_cap(sampler, trials, workers) == cap


@pytest.mark.parametrize(
    ("units", "end"),
    [
        (["done", "done"], "complete"),
        (["done", "waiting"], None),
        (["leased", "done"], None),
        (["waiting", "diverged"], "diverged"),
        (["infeasible", "failed"], "infeasible"),
        (["failed", "cancelled"], "failed"),
        (["cancelled", "done"], "cancelled"),
    ],
)
def test_a_trial_ends_as_its_units_say(units: list[str], end: str | None) -> None:
    assert lifecycle.trial_end(units) == end


STATES = st.lists(st.sampled_from(TRIAL_STATES), max_size=6)


@given(trials=STATES, used=st.integers(0, 6), total=st.integers(1, 6), spent=st.booleans())
def test_a_study_ends_only_when_nothing_is_open_and_nothing_may_be_opened(
    trials: list[str], used: int, total: int, spent: bool
) -> None:
    end = lifecycle.study_end(trials=trials, trials_used=used, trials_total=total, hours_spent=spent)
    is_open = any(state in ("waiting", "running") for state in trials)
    assert (end is None) == (is_open or (used < total and not spent))
    if end == "failed":
        assert not {"complete", "stopped"} & set(trials)


def test_hours_are_shared_by_the_units_that_run() -> None:
    assert lifecycle.seconds_left(None, 5.0, 2) is None
    assert lifecycle.seconds_left(1.0, 600.0, 3) == 1000.0
    assert lifecycle.seconds_left(1.0, 9999.0, 3) == 0.0
    assert lifecycle.seconds_left(1.0, 0.0, 0) == 3600.0
