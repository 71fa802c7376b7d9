"""Early stopping of one unit: its best epoch so far by the loss on its stopping part, with the weights of that epoch.

Prechelt 1998, "Early Stopping - But When?": stop when the loss has not fallen for so many epochs, keep the weights of
its minimum. The stopping part is of the unit's own training rows: the minimum over epochs of the loss on the validation
rows would be chosen on the very items that score the unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Best:
    """An epoch (1-based), its loss on the stopping part in nats per item, and its weights on the CPU, by name.

    weights: empty where nobody goes on from them.
    """

    epoch: int
    loss: float
    weights: Mapping[str, Tensor]


class Stopping:
    """rows: the stopping part. patience: epochs in a row without a lower loss before it is over; above 0."""

    def __init__(self, rows: Sequence[int], patience: int, best: Best | None = None) -> None:
        self.rows = rows
        self.patience = patience
        self.best = best

    def heard(self, epoch: int, loss: float, weights: Mapping[str, Tensor]) -> bool:
        """An epoch is over, with this loss and these weights, which are copied if it is the best; whether to stop."""
        if self.best is None or loss < self.best.loss:
            kept = {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}
            self.best = Best(epoch, loss, kept)
        return epoch - self.best.epoch >= self.patience

    def give_back(self, weights: Mapping[str, Tensor]) -> int:
        """Set weights to those of the best epoch; which it was."""
        assert self.best is not None
        with torch.no_grad():
            for name, value in weights.items():
                value.copy_(self.best.weights[name])
        return self.best.epoch
