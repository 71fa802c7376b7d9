"""Rows of several slots, ready to be computed together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from trial_worker.engine.narrow import Reads
from trial_worker.engine.slot import Slot
from trial_worker.engine.stream import Stream
from trial_worker.tasks.interface import Batch, Item, Scores, collate

WORTH_PICKING = 0.75  # of the tokens
Part = tuple[Slot, list[int]]  # a slot and the numbers of its rows, longest first


@dataclass(frozen=True, eq=False)
class MicroStep:
    """Parts in the order of the slots' places; batch and stream hold their rows one after another."""

    parts: tuple[Part, ...]
    batch: Batch
    stream: Stream

    def by_slot(self, values: Tensor) -> Tensor:
        """(parts,) sums of what belongs to the batch's targets, (targets,)."""
        device = values.device
        part_of_row = torch.repeat_interleave(torch.tensor([len(rows) for _, rows in self.parts])).to(device)
        return values.new_zeros(len(self.parts)).index_add(0, part_of_row[self.batch.owners], values)

    def split(self, scores: Scores) -> Iterator[Scores]:
        """Each part's own."""
        start = 0
        for _, rows in self.parts:
            own = slice(start, start + len(rows))
            start = own.stop
            yield Scores(
                nats=scores.nats[own],
                counts=scores.counts[own],
                correct=scores.correct[own],
                logits=None if scores.logits is None else scores.logits[own],
            )


def lay_out(chosen: Sequence[Part], pad_id: int, device: torch.device, reads: Reads) -> MicroStep:
    """A micro-step of these rows. Rows of a slot stand by length, so that those of equal length are neighbours.

    reads: which tokens are read behind the last layer.
    """
    parts = tuple((slot, sorted(rows, key=lambda row: (-slot.items[row].length, row))) for slot, rows in chosen)
    items = [slot.items[row] for slot, rows in parts for row in rows]
    keys = None
    if any(slot.settings.lora_dropout and not slot.evaluating for slot, _ in parts):
        keys = torch.cat([slot.keys(rows) for slot, rows in parts]).to(device)
    stream = Stream(
        parts=tuple((slot.place, len(rows)) for slot, rows in parts),
        lengths=tuple(item.length for item in items),
        device=device,
        keys=keys,
        read=_read_tokens(items, pad_id, reads),
    )
    return MicroStep(parts, collate(items, pad_id, device), stream)


def _read_tokens(items: Sequence[Item], pad_id: int, reads: Reads) -> Tensor | None:
    """As `Stream.read`; None as well where so many are read that picking them would cost more than it saves."""
    if reads == "all":
        return None
    starts = [0, *accumulate(item.length for item in items)]
    read = torch.cat([start + _read_of(item, pad_id, reads) for start, item in zip(starts, items, strict=False)])
    return read if len(read) < WORTH_PICKING * starts[-1] else None


def _read_of(item: Item, pad_id: int, reads: Reads) -> Tensor:
    if reads == "first":
        return torch.zeros(1, dtype=torch.int64)
    if reads == "targets":
        assert item.positions is not None
        return item.positions.unique()  # ascending
    # a decoder's classifier looks for the last token that is not the pad token, which a text may end with
    real = (item.ids != pad_id).nonzero().flatten()
    return real[-1:] if len(real) else torch.zeros(1, dtype=torch.int64)
