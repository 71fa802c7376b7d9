"""Sort texts, or pairs of texts, into classes: rows `{"text": str, "label": str}`, with `text_pair` for a pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trial_worker.tasks.interface import Item, Row, Scores
from trial_worker.tasks.likelihoods import log_softmax
from trial_worker.tasks.texts import OneTarget

BINS = 15  # equal-width bins of confidence, for the expected calibration error


class Classification(OneTarget):
    """Single-label classification; the loss is nats per row."""

    family = "sequence"
    one_class = True

    def __init__(self, labels: Sequence[str]) -> None:
        if len(labels) < 2:
            raise ValueError(f"classification needs at least 2 labels, got {len(labels)}")
        self.labels = tuple(labels)

    def target(self, row: Row) -> Tensor:
        """(1,) the number of the row's class."""
        if row.get("label") not in self.labels:
            raise ValueError(f"label {row.get('label')!r} is not one of the study's labels")
        return torch.tensor([self.labels.index(row["label"])])

    def tallies(self, items: Sequence[Item], scores: Scores) -> dict[str, Any]:
        """nats, items, correct, per-class tp / fp / fn, and 15 bins of [n, confidence sum, correct]."""
        if scores.logits is None:
            raise ValueError("classification tallies need logits")
        classes = len(self.labels)
        truth = np.array([int(item.targets[0]) for item in items])
        probabilities = np.exp(log_softmax(scores.logits))
        said = scores.logits.argmax(-1)
        hit = said == truth
        confidence = probabilities[np.arange(len(said)), said]
        where = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        return {
            "nats": float(scores.nats.sum()),
            "items": len(items),
            "correct": int(hit.sum()),
            "tp": np.bincount(truth[hit], minlength=classes).tolist(),
            "fp": np.bincount(said[~hit], minlength=classes).tolist(),
            "fn": np.bincount(truth[~hit], minlength=classes).tolist(),
            "bins": [
                [int((where == b).sum()), float(confidence[where == b].sum()), int(hit[where == b].sum())]
                for b in range(BINS)
            ],
        }
