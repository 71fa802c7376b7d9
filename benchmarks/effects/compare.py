"""Differences of two configurations on the same rows, with an interval (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from orchestrator import statistics


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


def effect(of: np.ndarray, against: np.ndarray, clusters: np.ndarray) -> Effect:
    """Of two (2, rows) as `by_row`; see `orchestrator.statistics`, also for clusters. Repeats of a row are one draw.

    How another seed would train is not in the interval.
    """
    found = statistics.difference(of.T, against.T, clusters)
    nats, items = of.sum(-1)
    return Effect(float(nats / items), found.value, found.low, found.high)
