"""Classes that are rare among a unit's training rows count more in what it makes small."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from trial_worker.tasks.interface import Item


def balanced(items: Sequence[Item], train: Sequence[int]) -> Mapping[int, float]:
    """Training row -> rows / (classes x rows of its class), as scikit-learn's `balanced`.

    Classes without a training row are not counted, so that the weights have mean 1 over the training rows. A step's
    loss is divided by its rows, not by their weights: gradients are those of the weighted training set whatever the
    batch, where torch's weighted mean would count a rare row less if it has others of its kind beside it.
    """
    counts = Counter(int(items[row].targets[0]) for row in train)
    return {row: len(train) / (len(counts) * counts[int(items[row].targets[0])]) for row in train}
