"""Differences of two configurations on the same rows, with an interval (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

DRAWS = 10_000


@dataclass(frozen=True)
class Effect:
    """loss: nats per item. difference: to the other one, below 0 is better. low, high: its 95 % interval."""

    loss: float
    difference: float
    low: float
    high: float


def by_row(rows: int, parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """(2, rows): nats and items, summed over the repeats. parts: of each fold (row numbers, nats, items)."""
    total = np.zeros((2, rows))
    for numbers, nats, items in parts:
        np.add.at(total[0], numbers, nats)
        np.add.at(total[1], numbers, items)
    return total


def effect(of: np.ndarray, against: np.ndarray, seed: int = 0) -> Effect:
    """Of two (2, rows) as `by_row`. A percentile bootstrap over rows, of the difference of the pooled losses.

    B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. Rows are drawn with all their
    repeats: these are no independent rows. How another seed would train is not in the interval.
    """
    rows = np.random.default_rng(seed).integers(0, of.shape[1], (DRAWS, of.shape[1]))
    drawn = _loss(of[:, rows]) - _loss(against[:, rows])
    low, high = np.quantile(drawn, [0.025, 0.975])
    loss = float(_loss(of))
    return Effect(loss, loss - float(_loss(against)), float(low), float(high))


def _loss(sums: np.ndarray) -> np.ndarray:
    nats, items = sums.sum(-1)
    return np.asarray(nats / items)
