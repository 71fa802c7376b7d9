"""Rows of several slots, ready to be computed together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from trial_worker.engine.base import Base
from trial_worker.engine.hiding import hide
from trial_worker.engine.losses import Bundle, Compared, Sample
from trial_worker.engine.narrow import Reads
from trial_worker.engine.slot import Slot
from trial_worker.engine.stream import Stream
from trial_worker.tasks.interface import Batch, Item, Scores, collate

WORTH_PICKING = 0.75  # of the tokens
Part = tuple[Slot, list[Sample]]  # a slot and its rows, longest first


@dataclass(frozen=True, eq=False)
class MicroStep:
    """Parts in the order of the slots' places; batch and stream hold their rows one after another.

    compared: which of them depend on one another; None: none.
    """

    parts: tuple[Part, ...]
    batch: Batch
    stream: Stream
    compared: Compared | None

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
                outputs=None if scores.outputs is None else scores.outputs[own],
            )


def lay_out(chosen: Sequence[tuple[Slot, list[Bundle]]], base: Base, reads: Reads) -> MicroStep:
    """A micro-step of these rows. Rows of a slot stand by length, so that those of equal length are neighbours.

    reads: which tokens are read behind the last layer.
    """
    parts = tuple((slot, _by_length(slot, mine)) for slot, mine in chosen)
    keys = None
    if any(slot.draws for slot, _ in parts):
        keys = torch.cat([slot.keys(samples) for slot, samples in parts])
    items = [slot.items[row] for slot, samples in parts for row, _ in samples]
    pad_id = int(base.tokenizer.pad_token_id or 0)
    stream = Stream(
        parts=tuple((slot.place, len(samples)) for slot, samples in parts),
        lengths=tuple(item.length for item in items),
        device=base.device,
        keys=None if keys is None else keys.to(base.device),
        read=_read_tokens(items, pad_id, reads),
    )
    rates = [0.0 if slot.evaluating else slot.settings.token_dropout for slot, samples in parts for _ in samples]
    if keys is not None and any(rates):
        items = [hide(*each, base.hidden) for each in zip(items, rates, keys, strict=True)]
    batch = collate(items, pad_id, base.device)
    if not base.knows_segments:
        batch = replace(batch, segments=None)
    smooth = [0.0 if slot.evaluating else slot.settings.label_smoothing for slot, samples in parts for _ in samples]
    if any(smooth):
        batch = replace(batch, smoothing=torch.tensor(smooth, device=base.device)[batch.owners])
    weights = [slot.weight(row) for slot, samples in parts for row, _ in samples]
    if any(weight != 1.0 for weight in weights):
        of_rows = torch.tensor(weights, dtype=torch.float64, device=base.device)
        batch = replace(batch, weights=of_rows[batch.owners])
    compared = _compare(chosen, parts, base.device) if any(slot.compares for slot, _ in parts) else None
    return MicroStep(parts, batch, stream, compared)


def _by_length(slot: Slot, bundles: Sequence[Bundle]) -> list[Sample]:
    samples = [sample for bundle in bundles for sample in bundle]
    return sorted(samples, key=lambda sample: (-slot.items[sample[0]].length, sample))


def _compare(chosen: Sequence[tuple[Slot, list[Bundle]]], parts: Sequence[Part], device: torch.device) -> Compared:
    """Of rows with one target each."""
    named = [(slot.place, sample) for slot, samples in parts for sample in samples]
    places = {name: place for place, name in enumerate(named)}
    partners, twins = list(range(len(named))), list(range(len(named)))
    shares, pulls = [1.0] * len(named), [0.0] * len(named)
    for slot, bundles in chosen:
        for bundle in bundles if slot.compares else ():
            rows, share = sorted({row for row, _ in bundle}), slot.share(bundle)
            for row, copy in bundle:
                place = places[slot.place, (row, copy)]
                partners[place] = places[slot.place, (rows[-1] if row == rows[0] else rows[0], copy)]
                twins[place] = places[slot.place, (row, slot.copies - 1 - copy)]
                shares[place], pulls[place] = share, slot.settings.r_drop_alpha
    wide = torch.float64
    return Compared(
        partners=torch.tensor(partners, device=device),
        shares=torch.tensor(shares, dtype=wide, device=device),
        twins=torch.tensor(twins, device=device),
        pulls=torch.tensor(pulls, dtype=wide, device=device),
    )


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
