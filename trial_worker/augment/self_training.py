"""Self-training: labels that models of the training fold give to rows that have none.

Lee 2013 (pseudo-labels); calibration by one temperature, Guo et al. 2017, arXiv 1706.04599. Pure but for numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from orchestrator.contract import derive_seed
from orchestrator.texts import together
from trial_worker.augment.made import Made
from trial_worker.tasks.interface import Row
from trial_worker.tasks.likelihoods import log_softmax

PARTS = 3  # of a training fold: each is predicted once by a model of the others


def inner_parts(rows: Mapping[int, Row], seed: int) -> list[tuple[int, ...]]:
    """The training rows dealt into `PARTS`, classes evenly; rows of one group or one text stay together.

    Raises:
        ValueError: fewer groups than parts.
    """
    groups = together(rows)
    if len(groups) < PARTS:
        raise ValueError(f"self-training needs {PARTS} different training rows at least, got {len(groups)}")
    order = sorted(groups, key=lambda name: (rows[groups[name][0]]["label"], derive_seed(seed, "part", name)))
    parts = [[number for name in order[part::PARTS] for number in groups[name]] for part in range(PARTS)]
    return [tuple(sorted(part)) for part in parts]


def temperature(logits: np.ndarray, classes: np.ndarray) -> float:
    """What logits are divided by so that their softmax tells how sure it may be.

    logits: (rows, classes) of models that were not trained on these rows. classes: (rows,) the right ones.

    Returns:
        The minimiser of the mean negative log-likelihood in [1/20, 20], by golden-section search on its logarithm,
        in which the likelihood of the inverse temperature has one minimum.
    """
    low, high, ratio = -np.log(20.0), np.log(20.0), (np.sqrt(5) - 1) / 2

    def nats(log: float) -> float:
        return float(-log_softmax(logits / np.exp(log))[np.arange(len(classes)), classes].mean())

    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if nats(left) <= nats(right):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def confidences(logits: Sequence[np.ndarray], temperature: float) -> np.ndarray:
    """(rows, classes): the mean of several models' calibrated probabilities; logits of each are (rows, classes)."""
    return np.mean([np.exp(log_softmax(one / temperature)) for one in logits], axis=0)


def labelled(
    pool: Sequence[Row], sure: np.ndarray, labels: Sequence[str], threshold: float, sources: tuple[int, ...]
) -> Iterator[Made]:
    """Rows of the pool with the label that the models are at least so sure of.

    sure: (pool, classes). sources: all rows that the models and their calibration have seen.
    """
    for row, each in zip(pool, sure, strict=True):
        if each.max() >= threshold:
            yield Made({**row, "label": labels[int(each.argmax())]}, sources, "self-training")
