"""Which rows are probably labelled wrongly, by what models said of them that had not seen them (pure).

With the probability of each class: confident learning (C. Northcutt, L. Jiang, I. Chuang, "Confident Learning:
Estimating Uncertainty in Dataset Labels", JAIR 70, 2021, arXiv 1911.00068). A class's threshold is the mean probability
that rows of it get for it. A row is suspect where its own class gets less than its threshold, and another class gets
its threshold or more. Without: rows whose loss is far beyond the others'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FAR = 3.0  # times the range of the middle half of all losses, above it (J. Tukey, "Exploratory Data Analysis", 1977)


@dataclass(frozen=True)
class Suspect:
    """One row, by its number from 0. said: the class that speaks against its label; None: classes were not asked."""

    row: int
    said: int | None = None


def by_classes(probabilities: np.ndarray, labels: np.ndarray) -> list[Suspect]:
    """The most suspicious first: where the other class is most likely beside the given one.

    probabilities: (rows, classes), each row's sum 1, of models that had not seen the row. labels: (rows,) int.
    """
    rows = np.arange(len(labels))
    own = probabilities[rows, labels]
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    sums = np.bincount(labels, weights=own, minlength=probabilities.shape[1])
    thresholds = np.divide(sums, counts, out=np.full(len(counts), np.inf), where=counts > 0)
    others = np.where(probabilities >= thresholds, probabilities, -np.inf)
    others[rows, labels] = -np.inf
    said = others.argmax(1)
    against = others[rows, said]
    found = np.flatnonzero((own < thresholds[labels]) & np.isfinite(against))
    order = found[np.argsort((own - against)[found], kind="stable")]
    return [Suspect(int(row), int(said[row])) for row in order]


def by_labels(probabilities: np.ndarray, given: np.ndarray) -> list[Suspect]:
    """Of several labels a row: each class by itself, as two classes; a row by the one that speaks loudest.

    probabilities: (rows, classes), that the row has the label. given: (rows, classes), whether it is said to have it.
    `said` is the class in question, which the row lacks or has wrongly.
    """
    loudest: dict[int, tuple[float, int]] = {}
    for number in range(probabilities.shape[1]):
        likely, own = probabilities[:, number], given[:, number].astype(int)
        for each in by_classes(np.stack([1 - likely, likely], 1), own):
            margin = float(likely[each.row] if own[each.row] else 1 - likely[each.row])
            loudest[each.row] = min((margin, number), loudest.get(each.row, (1.0, number)))
    order = sorted(loudest.items(), key=lambda item: (item[1][0], item[0]))
    return [Suspect(row, number) for row, (_, number) in order]


def by_losses(losses: np.ndarray) -> list[Suspect]:
    """Rows with a loss that lies far out, the largest first; NaN is none. losses: (rows,), nats per item."""
    known = losses[np.isfinite(losses)]
    if not len(known):
        return []
    low, high = np.quantile(known, (0.25, 0.75))
    far = np.flatnonzero(losses > high + FAR * (high - low))
    return [Suspect(int(row)) for row in far[np.argsort(-losses[far], kind="stable")]]


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """(rows, classes) of float16 logits as probabilities, each by itself."""
    return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64))))


def softmax(logits: np.ndarray) -> np.ndarray:
    """(rows, classes) of float16 logits as probabilities."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))
