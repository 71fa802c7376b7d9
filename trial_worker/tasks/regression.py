"""A number for each text: rows `{"text": str, "number": float}`, with `text_pair` for a pair.

A unit learns the number in standard deviations from the mean of its training rows, and says it so; `validation_loss` is
what a normal distribution of that width around the answer costs, in nats (docs/decisions/0013-regression-in-nats.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trial_worker.tasks.interface import Answers, Batch, Item, Row, Scores
from trial_worker.tasks.texts import OneTarget

_CERTAIN = math.log(2 * math.pi) / 2  # nats of a standard normal distribution at its middle


class Regression(OneTarget):
    """The loss is nats per row."""

    family = "sequence"
    outputs = 1

    def target(self, row: Row) -> Tensor:
        """(1,) float64."""
        number = row.get("number")
        if not isinstance(number, int | float) or isinstance(number, bool) or not math.isfinite(number):
            raise ValueError(f"number must be a finite number, got {number!r}")
        return torch.tensor([number], dtype=torch.float64)

    def fitted(self, items: Sequence[Item], train: Sequence[int]) -> Sequence[Item]:
        """Targets in standard deviations (of the whole sample, not corrected) from the training rows' mean."""
        seen = torch.cat([items[row].targets for row in train])
        centre, spread = float(seen.mean()), float(seen.std(correction=0)) or 1.0
        return [replace(item, targets=(item.targets - centre) / spread, centre=centre, spread=spread) for item in items]

    def answer(self, outputs: Tensor, batch: Batch) -> Answers:
        """Of outputs (rows, 1), in standard deviations."""
        away = outputs.squeeze(-1).double() - batch.targets
        return Answers(away**2 / 2 + _CERTAIN, torch.zeros_like(away, dtype=torch.bool), outputs)

    def tallies(self, items: Sequence[Item], scores: Scores) -> dict[str, Any]:
        """nats, items; of the data's own numbers: squared and absolute errors, the numbers and their squares."""
        assert scores.logits is not None
        truth, centre, spread = (
            np.array([value(item) for item in items])
            for value in (lambda item: float(item.targets[0]), lambda item: item.centre, lambda item: item.spread)
        )
        errors = (scores.logits[:, 0].astype(np.float64) - truth) * spread
        numbers = truth * spread + centre
        return {
            "nats": float(scores.nats.sum()),
            "items": len(items),
            "squared_errors": float((errors**2).sum()),
            "absolute_errors": float(np.abs(errors).sum()),
            "numbers": float(numbers.sum()),
            "squared_numbers": float((numbers**2).sum()),
        }
