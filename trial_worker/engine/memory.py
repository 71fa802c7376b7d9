"""How much is computed at once, and what happens when it does not fit."""

from __future__ import annotations

import copy
import gc

import torch

from orchestrator.contract import Outcome
from trial_worker.engine.batches import split_by_length
from trial_worker.engine.errors import UnitStopped
from trial_worker.tasks.interface import Item

# What one more micro-step costs in tokens: its fixed work per layer against the work per token.
_OVERHEAD = {"cpu": 64, "cuda": 4096}
_FLOATS_OF_LOGITS = 1 << 26  # at most 256 MiB of float32 logits at once


class MicroSteps:
    """Splits batches into what fits the device; shrinks, for all later units too, when something did not fit.

    No size here changes a number beyond rounding: sums over a batch are divided once, by the whole batch.
    """

    def __init__(self, device: torch.device, vocabulary: int = 0) -> None:
        self._cuda = device.type == "cuda"
        self._overhead = _OVERHEAD.get(device.type, 4096)
        self._device: MicroSteps | None = None  # whose copy this is for one unit
        self.most_rows = 4096
        self.most_tokens = 16384 if vocabulary == 0 else max(256, min(16384, _FLOATS_OF_LOGITS // vocabulary))

    def capped(self, rows: int | None) -> MicroSteps:
        """These for a unit that takes at most so many rows at once; None: no limit of its own."""
        if rows is None:
            return self
        unit = copy.copy(self)
        unit.most_rows, unit._device = min(self.most_rows, max(rows, 1)), self
        return unit

    def split(self, items: list[Item]) -> list[list[int]]:
        """Positions of the items in groups to compute together."""
        return split_by_length([item.length for item in items], self.most_rows, self.most_tokens, self._overhead)

    def shrink(self, items: list[Item], note: str) -> None:
        """Halve the rows per micro-step after these items did not fit.

        Raises:
            UnitStopped: INFEASIBLE, one row at a time was already too much.
        """
        rows = max(len(group) for group in self.split(items))
        if rows == 1:
            longest = max(item.length for item in items)
            raise UnitStopped(
                Outcome.INFEASIBLE, f"one row of {longest} tokens does not fit into the device's memory ({note})"
            )
        self.most_rows = rows // 2
        if self._device is not None:
            self._device.most_rows = min(self._device.most_rows, self.most_rows)
        gc.collect()
        if self._cuda:
            torch.cuda.empty_cache()
