"""The best of many is told as what it will be on other rows, not as what it was on those that it was chosen by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import selection, statistics

ROWS = 120


def drawn(draws: np.random.Generator, truths: np.ndarray) -> np.ndarray:
    """(trials, rows, 2): how hard a row is for all, and what each trial makes of it."""
    nats = truths[:, None] + draws.normal(0, 0.7, ROWS) + draws.normal(0, 0.5, (len(truths), ROWS))
    return np.stack([nats, np.ones(nats.shape)], -1)


def best_of(sums: np.ndarray) -> selection.Winner:
    return selection.winner(sums, np.arange(ROWS), (sums[..., 1] > 0).all(1))


@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_the_corrected_loss_is_neither_too_low_nor_too_high(spread: float) -> None:
    draws, errors, naive, covered = np.random.default_rng(3), [], [], []
    for _ in range(60):
        truths = draws.normal(1.0, spread, 20)
        sums = drawn(draws, truths)
        found = best_of(sums)
        errors.append(found.loss.value - truths[found.trial])
        naive.append(found.seen - truths[found.trial])
        covered.append(found.loss.low <= truths[found.trial] <= found.loss.high)
    assert np.mean(naive) < np.mean(errors) - (0.02 if spread else 0.05)
    assert abs(np.mean(errors)) < 0.05
    assert np.mean(covered) > 0.85


def test_one_trial_is_as_it_was_seen() -> None:
    sums = drawn(np.random.default_rng(1), np.ones(1))
    found, alone = best_of(sums), statistics.mean(*sums[0].T, np.arange(ROWS))
    assert (found.trial, found.contenders) == (0, 1)
    assert found.seen == pytest.approx(alone.value)
    assert (found.loss.low, found.loss.high) == pytest.approx((alone.low, alone.high), abs=1e-9)


def test_trials_that_are_far_behind_change_nothing() -> None:
    draws = np.random.default_rng(2)
    sums = drawn(draws, np.array([1.0, 4.0, 5.0, 6.0]))
    found, alone = (best_of(each) for each in (sums, sums[:1]))
    assert (found.trial, found.contenders) == (0, 1)
    assert found.loss.value == pytest.approx(alone.loss.value, abs=1e-9)
    assert (found.loss.low, found.loss.high) == pytest.approx((alone.loss.low, alone.loss.high), abs=1e-9)


def test_a_stopped_trial_is_not_the_winner_and_may_still_contend() -> None:
    draws = np.random.default_rng(4)
    sums = drawn(draws, np.ones(3))
    sums[2, :30, 0] = sums[:2, :30, 0].min() - 1  # better than both on all that it was judged by
    sums[2, 30:] = 0
    found = best_of(sums)
    assert found.trial in (0, 1)
    assert found.seen == pytest.approx(sums[found.trial, :, 0].mean())


@given(seed=st.integers(0, 50), shift=st.floats(-3, 3))
def test_what_is_hard_for_all_moves_all(seed: int, shift: float) -> None:
    sums = drawn(np.random.default_rng(seed), np.ones(6))
    moved = sums + np.array([shift, 0.0])
    plain, other = (best_of(each) for each in (sums, moved))
    assert (other.trial, other.contenders) == (plain.trial, plain.contenders)
    for name in ("value", "low", "high"):
        assert getattr(other.loss, name) == pytest.approx(getattr(plain.loss, name) + shift, abs=1e-6)


def test_a_stopped_trial_with_items_on_every_row_is_not_the_winner() -> None:
    """Of several repeats it was stopped after the first."""
    sums = drawn(np.random.default_rng(5), np.array([1.0, 0.8]))
    assert selection.winner(sums, np.arange(ROWS), np.array([True, False])).trial == 0


def test_losses_that_do_not_vary_give_no_interval() -> None:
    found = selection.winner(np.ones((3, 10, 2)), np.arange(10), np.ones(3, bool))
    assert (found.loss.value, np.isnan(found.loss.low)) == (1.0, True)
