"""Intervals cover what they say, and tests are those of the books."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orchestrator import statistics

LOSSES = st.lists(st.floats(0.01, 20), min_size=8, max_size=40, unique_by=lambda loss: round(loss, 1))


def of(losses: np.ndarray, counts: np.ndarray | None = None, clusters: np.ndarray | None = None) -> statistics.Estimate:
    ones = np.ones(len(losses)) if counts is None else counts
    return statistics.mean(losses, ones, np.arange(len(losses)) if clusters is None else clusters)


def test_of_a_normal_sample_the_interval_is_students() -> None:
    sample = np.random.default_rng(1).normal(2.0, 0.5, 60)
    found = of(sample)
    low, high = stats.t.interval(0.95, 59, sample.mean(), stats.sem(sample))
    assert found.value == pytest.approx(sample.mean())
    assert (found.low, found.high) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))


@pytest.mark.parametrize(
    ("rows", "draw", "truth"),
    [
        (50, lambda rng, n: rng.normal(1.0, 0.5, n), 1.0),
        (50, lambda rng, n: rng.exponential(1.0, n), 1.0),
        (50, lambda rng, n: rng.lognormal(0.0, 1.0, n), math.exp(0.5)),
    ],
    ids=["50 normal", "50 exponential", "50 lognormal"],
)
def test_nineteen_of_twenty_intervals_cover_the_mean(
    rows: int, draw: Callable[[np.random.Generator, int], np.ndarray], truth: float
) -> None:
    """Where a percentile bootstrap of lognormal losses covers 89 of 100 (`python -m benchmarks.coverage`)."""
    rng = np.random.default_rng(rows)
    covered = [found.low <= truth <= found.high for found in (of(draw(rng, rows)) for _ in range(160))]
    assert 0.90 <= np.mean(covered) <= 0.985


def test_rows_that_belong_together_are_no_more_evidence_than_one() -> None:
    rng = np.random.default_rng(5)
    covered = {"told": [], "not told": []}
    for _ in range(100):
        clusters = np.repeat(np.arange(40), 5)
        losses = np.repeat(rng.normal(1.0, 0.5, 40), 5) + rng.normal(0.0, 0.1, 200)
        for name, found in (("told", of(losses, clusters=clusters)), ("not told", of(losses))):
            covered[name].append(found.low <= 1.0 <= found.high)
    assert 0.90 <= np.mean(covered["told"]) <= 0.985
    assert np.mean(covered["not told"]) < 0.8


@settings(max_examples=25)
@given(losses=LOSSES, shift=st.floats(-5, 5), scale=st.floats(0.1, 10))
def test_an_interval_moves_with_its_sample(losses: list[float], shift: float, scale: float) -> None:
    sample = np.array(losses)
    plain, moved = of(sample), of(sample * scale + shift)
    for name in ("value", "low", "high"):
        assert getattr(moved, name) == pytest.approx(getattr(plain, name) * scale + shift, rel=1e-6, abs=1e-6)
    assert plain.low < plain.value < plain.high


@settings(max_examples=25)
@given(losses=LOSSES)
def test_every_row_twice_with_its_twin_told_changes_nothing(losses: list[float]) -> None:
    sample = np.array(losses)
    once, twice = of(sample), of(np.repeat(sample, 2), clusters=np.repeat(np.arange(len(sample)), 2))
    assert (twice.value, twice.low, twice.high) == pytest.approx((once.value, once.low, once.high), rel=1e-9)


@settings(max_examples=25)
@given(losses=LOSSES, seed=st.integers(0, 100))
def test_a_difference_is_that_of_the_same_rows(losses: list[float], seed: int) -> None:
    """Paired: what both sides have in common is not chance. With equal counts it is the mean of the differences."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, len(losses)).astype(float)
    other = np.array(losses) * counts
    one = other + counts * rng.normal(0.1, 0.05, len(losses))
    clusters = np.arange(len(losses))
    found = statistics.difference(np.stack([one, counts], 1), np.stack([other, counts], 1), clusters)
    alone = statistics.mean(one - other, counts, clusters)
    assert (found.value, found.low, found.high) == pytest.approx((alone.value, alone.low, alone.high), abs=1e-6)


def test_what_gives_no_interval_says_so() -> None:
    assert math.isnan(of(np.array([1.0])).low)
    assert math.isnan(of(np.array([1.0, 2.0]), clusters=np.array([3, 3])).high)
    same = np.stack([np.array([1.0, 2.0, 3.0]), np.ones(3)], 1)
    assert statistics.difference(same, same, np.arange(3)) == statistics.Estimate(0.0, 0.0, 0.0)


@given(differences=st.lists(st.floats(-2, 2), min_size=2, max_size=30).filter(lambda each: np.ptp(each) > 1e-3))
def test_the_corrected_t_test_is_students_without_overlap(differences: list[float]) -> None:
    plain = statistics.corrected_t(np.array(differences), 0.0)
    expected = stats.ttest_1samp(differences, 0.0)
    assert plain is not None
    assert (plain.t, plain.p) == (pytest.approx(expected.statistic, abs=1e-9), pytest.approx(expected.pvalue, abs=1e-5))
    assert plain.freedom == len(differences) - 1


def test_the_corrected_t_test_with_overlap_is_that_of_the_paper() -> None:
    """Nadeau and Bengio (2003), equation 9: ten times ten folds, n2 / n1 = 1/9."""
    differences = np.random.default_rng(2).normal(0.02, 0.05, 100)
    found = statistics.corrected_t(differences, 1 / 9)
    t = differences.mean() / math.sqrt((1 / 100 + 1 / 9) * differences.var(ddof=1))
    assert found is not None
    assert (found.t, found.p) == (pytest.approx(t), pytest.approx(2 * stats.t.sf(abs(t), 99), abs=1e-9))
    assert found.p > stats.ttest_1samp(differences, 0.0).pvalue


@pytest.mark.parametrize("differences", [[], [0.1], [0.1, 0.1, 0.1]])
def test_folds_that_do_not_vary_give_no_test(differences: list[float]) -> None:
    assert statistics.corrected_t(np.array(differences), 0.25) is None
