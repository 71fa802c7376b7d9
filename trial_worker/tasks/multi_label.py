"""Which of several classes fit a text, or a pair of texts, any number: rows `{"text": str, "labels": [str]}`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from trial_worker.tasks.interface import Answers, Batch, Item, Row, Scores
from trial_worker.tasks.texts import OneTarget


class MultiLabel(OneTarget):
    """A yes or no for each class; the loss is nats per row, summed over the classes."""

    family = "sequence"

    def __init__(self, labels: Sequence[str]) -> None:
        if not labels:
            raise ValueError("multi_label needs at least 1 label, got 0")
        self.labels = tuple(labels)

    def target(self, row: Row) -> Tensor:
        """(1, classes) float32, 1 where the class fits."""
        own = row.get("labels")
        if not isinstance(own, list | tuple) or not set(own) <= set(self.labels):
            raise ValueError(f"labels {own!r} are not all of the study's")
        return torch.tensor([[float(label in own) for label in self.labels]])

    def answer(self, outputs: Tensor, batch: Batch) -> Answers:
        """Of logits (rows, classes). A row is hit where every class is. Smoothed targets lean towards one half."""
        wide = outputs if outputs.dtype == torch.float64 else outputs.float()
        truth = batch.targets.to(wide.dtype)
        nats = binary_cross_entropy_with_logits(wide, truth, reduction="none").sum(-1).double()
        smoothed = None
        if batch.smoothing is not None:
            even = binary_cross_entropy_with_logits(wide, torch.full_like(truth, 0.5), reduction="none").sum(-1)
            smoothed = torch.lerp(nats, even.double(), batch.smoothing.double())
        return Answers(nats, ((outputs > 0) == (batch.targets > 0)).all(-1), outputs, smoothed)

    def tallies(self, items: Sequence[Item], scores: Scores) -> dict[str, Any]:
        """nats, items (rows), correct (rows with every class right), per-class tp / fp / fn."""
        assert scores.logits is not None
        truth = torch.cat([item.targets for item in items]).numpy() > 0
        said = scores.logits > 0
        return {
            "nats": float(scores.nats.sum()),
            "items": len(items),
            "correct": int((said == truth).all(-1).sum()),
            "tp": (said & truth).sum(0).tolist(),
            "fp": (said & ~truth).sum(0).tolist(),
            "fn": (~said & truth).sum(0).tolist(),
        }
