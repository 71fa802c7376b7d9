"""Intervals and comparisons for small samples of rows (pure but for numpy).

Rows are the sample: what is said here would hold of other rows from where these came from. Chance of another kind, such
as a training run's seed, is not in it. Rows that belong together (one group, one text) are drawn together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.racing import student_tail
from orchestrator.texts import together

DRAWS = 4_000
AT_ONCE = 2**21  # numbers of one batch of draws: 16 MiB
VANISHING = 1e-6  # of the standard error: a draw of one cluster again and again has none, but for rounding


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; NaN at both ends where the rows give none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Test:
    """Of the hypothesis that there is no difference. p: two-sided."""

    t: float
    freedom: int
    p: float


def clusters(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """(rows,) int: which of a snapshot's rows belong together, see `texts.together`."""
    found = np.zeros(len(rows), int)
    for number, members in enumerate(together(dict(enumerate(rows))).values()):
        found[members] = number
    return found


def mean(nats: np.ndarray, counts: np.ndarray, clusters: np.ndarray, *, level: float = 0.95) -> Estimate:
    """Nats per item. nats, counts: (rows,) sums and items of each row. clusters: (rows,) int, see the module."""
    return _studentised(np.stack([nats, counts], 1), clusters, level)


def difference(one: np.ndarray, other: np.ndarray, clusters: np.ndarray, *, level: float = 0.95) -> Estimate:
    """Nats per item of one side minus the other's, on the same rows. one, other: (rows, 2) sums and items."""
    return _studentised(np.concatenate([one, other], 1), clusters, level)


def _studentised(sides: np.ndarray, clusters: np.ndarray, level: float) -> Estimate:
    """Bootstrap-t interval of a ratio of sums, or of a difference of two.

    B. Efron and R. Tibshirani, "An Introduction to the Bootstrap" (1993), section 12.5, with the standard error of the
    linearised statistic (W. Cochran, "Sampling Techniques" (1977), equation 6.13 for ratios), whole clusters drawn.
    The tails of losses are heavy: a percentile interval of a mean would be too short, and shifted the wrong way.

    sides: (rows, 2) sums and items, or (rows, 4) of two sides.
    """
    _, place = np.unique(clusters, return_inverse=True)
    count = int(place.max(initial=-1)) + 1
    totals = np.stack([np.bincount(place, column, count) for column in sides.astype(float).T], 1)
    value, error = _value(totals.sum(0)), _error(totals.sum(0), totals.T @ totals, count)
    if count < 2 or not math.isfinite(value) or not math.isfinite(error):
        return Estimate(float(value), math.nan, math.nan)
    if error == 0:
        return Estimate(float(value), float(value), float(value))
    products = (totals[:, :, None] * totals[:, None, :]).reshape(count, -1)
    deviations = []
    for weights in resamples(count):
        sums = weights @ totals
        moments = (weights @ products).reshape(-1, sides.shape[1], sides.shape[1])
        with np.errstate(divide="ignore", invalid="ignore"):
            errors = _error(sums, moments, count)
            deviations.append(((_value(sums) - value) / errors)[errors > VANISHING * error])
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(deviations), [tail, 1 - tail])
    return Estimate(float(value), float(value - high * error), float(value - low * error))


def resamples(count: int, width: int = 1) -> Iterator[np.ndarray]:
    """`DRAWS` draws with replacement from so many clusters, the same ones at each call, some at a time.

    Each (draws, count): how often each cluster is in each draw. width: numbers that the caller holds for each cluster.
    """
    random, left = np.random.default_rng(0), DRAWS
    while left:
        size = max(1, min(left, AT_ONCE // (count + width)))
        chosen = random.integers(0, count, (size, count)) + np.arange(size)[:, None] * count
        yield np.bincount(chosen.ravel(), minlength=size * count).reshape(size, count).astype(float)
        left -= size


def _value(sums: np.ndarray) -> np.ndarray:
    """(..., 2 or 4) -> (...)."""
    own: np.ndarray = sums[..., 0] / sums[..., 1]
    return own if sums.shape[-1] == 2 else own - sums[..., 2] / sums[..., 3]


def _error(sums: np.ndarray, moments: np.ndarray, count: int) -> np.ndarray:
    """Standard error. sums: (..., m). moments: (..., m, m) of the clusters' totals."""
    slopes = [1 / sums[..., 1], -sums[..., 0] / sums[..., 1] ** 2]
    if sums.shape[-1] == 4:
        slopes += [-1 / sums[..., 3], sums[..., 2] / sums[..., 3] ** 2]
    slope = np.stack(slopes, -1)
    squares: np.ndarray = np.einsum("...i,...ij,...j", slope, moments, slope)
    error: np.ndarray = np.sqrt(np.maximum(squares, 0.0) * count / max(count - 1, 1))
    return error


def corrected_t(differences: np.ndarray, validated: float) -> Test | None:
    """The corrected resampled t-test over folds; None of fewer than two, or where they do not vary.

    C. Nadeau and Y. Bengio, "Inference for the Generalization Error", Machine Learning 52 (2003), section 4: the folds'
    training parts overlap, so that the variance of their mean is not s^2 / J, but about (1 / J + n2 / n1) s^2.

    differences: (folds,) of the losses of each. validated: n2 / n1, rows that a fold validates for each that it trains.
    """
    folds = len(differences)
    if folds < 2:
        return None
    mean, spread = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if not spread > VANISHING * abs(mean):
        return None
    t = mean / (math.sqrt(1 / folds + validated) * spread)
    return Test(t=t, freedom=folds - 1, p=min(1.0, 2 * student_tail(abs(t), folds - 1)))
