"""Which rows make a step, and which of them are computed together. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from orchestrator.contract import derive_seed


def epoch_order(rows: Sequence[int], seed: int, epoch: int) -> list[int]:
    """The rows in the order of this epoch (1-based), a function of seed and epoch only."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]


def effective_batches(order: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """The rows of each optimizer step; the last smaller batch of an epoch makes its own step."""
    for start in range(0, len(order), batch_size):
        yield list(order[start : start + batch_size])


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimizer steps in which every row is seen once."""
    return math.ceil(rows / batch_size)


def split_by_length(lengths: Sequence[int], most_rows: int, most_tokens: int, overhead: int) -> list[list[int]]:
    """Positions of the rows in groups that cost least when each group is padded to its longest row.

    most_rows, most_tokens: bounds on a group, in rows and in padded tokens; a single row is always allowed.
    overhead: what one more group costs, in tokens.

    Returns:
        Groups of positions in `lengths`, longest rows first, so that memory is asked for at its peak and what
        does not fit fails at once.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    best: list[tuple[float, int]] = [(0.0, 0)]  # (cost, start of the last group) of the first n rows
    for end in range(1, len(order) + 1):
        choices = []
        for start in range(end - 1, max(end - most_rows, 0) - 1, -1):
            padded = lengths[order[start]] * (end - start)
            if padded > most_tokens and end - start > 1:
                break
            choices.append((best[start][0] + padded + overhead, start))
        best.append(min(choices))
    groups: list[list[int]] = []
    end = len(order)
    while end > 0:
        start = best[end][1]
        groups.insert(0, order[start:end])
        end = start
    return groups
