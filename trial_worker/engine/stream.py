"""The shape of one micro-step: rows of several slots as one stream of tokens, without padding.

Rows stand slot by slot. Outside the transformer's layers they are a padded grid (rows, width), so that embeddings,
poolers and heads are the family's own code; inside the layers they are (1, tokens), see `window`, and behind the last
attention they may be (1, read tokens), see `narrow`. All forms are known here, so that a layer of the adapter finds
which of its inputs belong to which slot by their shape alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from trial_worker.engine.blocks import Blocks


@dataclass(frozen=True)
class Bound:
    """Rows or tokens `start` to `end` of a micro-step belong to a slot."""

    slot: int
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Groups:
    """Which vectors are whose. ends: (slots,) int32, where each slot's end. slots: (vectors,) int64, of each vector."""

    ends: Tensor
    slots: Tensor

    @classmethod
    def of(cls, bounds: Sequence[Bound], slots: int, device: torch.device) -> Groups:
        """Of bounds in the order of their slots."""
        counts = torch.zeros(slots, dtype=torch.int64)
        for bound in bounds:
            counts[bound.slot] = bound.end - bound.start
        owners = torch.repeat_interleave(torch.arange(slots), counts)
        return cls(counts.cumsum(0).to(device, torch.int32), owners.to(device))


@dataclass(frozen=True, eq=False)
class Stream:
    """One micro-step's rows.

    parts: (slot, rows) in the order of the rows. lengths: tokens of each row. device: of all tensors here.
    keys: (rows,) int64, what the dropout of each row is drawn from; None: no dropout.
    read: (read tokens,) int64, on the CPU and ascending, of the stream's tokens those that anything reads behind the
        last layer; None: all.
    """

    parts: tuple[tuple[int, int], ...]
    lengths: tuple[int, ...]
    device: torch.device
    keys: Tensor | None = field(default=None, repr=False)
    read: Tensor | None = field(default=None, repr=False)
    _groups: dict[Any, Groups] = field(default_factory=dict, repr=False)

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @cached_property
    def width(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths)

    @cached_property
    def tokens(self) -> int:
        return sum(self.lengths)

    @cached_property
    def row_bounds(self) -> tuple[Bound, ...]:
        """Which rows are whose."""
        bounds, start = [], 0
        for slot, rows in self.parts:
            bounds.append(Bound(slot, start, start + rows))
            start += rows
        return tuple(bounds)

    @cached_property
    def token_bounds(self) -> tuple[Bound, ...]:
        """Which tokens of the stream are whose."""
        starts = [0]
        for length in self.lengths:
            starts.append(starts[-1] + length)
        return tuple(Bound(bound.slot, starts[bound.start], starts[bound.end]) for bound in self.row_bounds)

    @cached_property
    def read_tokens(self) -> Tensor:
        """`read`, on the device."""
        assert self.read is not None
        return self.read.to(self.device)

    @cached_property
    def read_bounds(self) -> tuple[Bound, ...]:
        """Which of the read tokens are whose."""
        assert self.read is not None
        ends = torch.searchsorted(self.read, torch.tensor([bound.end for bound in self.token_bounds])).tolist()
        starts = [0, *ends[:-1]]
        return tuple(Bound(b.slot, i, j) for b, i, j in zip(self.token_bounds, starts, ends, strict=True))

    @cached_property
    def blocks(self) -> Blocks:
        """The rows as attention multiplies them."""
        return Blocks.of(self.lengths, self.device)

    @cached_property
    def token_rows(self) -> Tensor:
        """(tokens,) the row of each token."""
        return torch.repeat_interleave(torch.arange(self.rows), torch.tensor(self.lengths)).to(self.device)

    @cached_property
    def token_positions(self) -> Tensor:
        """(tokens,) the place of each token in its row."""
        return torch.cat([torch.arange(length) for length in self.lengths]).to(self.device)

    @cached_property
    def places(self) -> Tensor:
        """(tokens,) the place of each token in the flattened grid (rows * width)."""
        return self.token_rows * self.width + self.token_positions

    @cached_property
    def offsets(self) -> Tensor:
        """(rows + 1,) int32, where each row begins in the stream, for kernels of variable length."""
        ends = torch.tensor([0, *self.lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return ends.to(self.device)

    def flows(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape, features last, is in stream form."""
        return len(shape) == 3 and shape[0] == 1 and shape[1] == self.tokens

    def is_read(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape holds the read tokens, and these alone."""
        return self.read is not None and len(shape) == 3 and shape[0] == 1 and shape[1] == len(self.read)

    def bounds(self, shape: Sequence[int]) -> tuple[Bound, ...]:
        """Which vectors of a tensor of this shape, features last and the rest flattened, are whose.

        Raises:
            ValueError: the shape is neither this micro-step's stream nor its grid; no slot could be told its part.
        """
        if self.flows(shape):
            return self.token_bounds
        if self.is_read(shape):
            return self.read_bounds
        if shape[0] != self.rows:
            raise ValueError(
                f"a layer got {tuple(shape)}, neither (1, {self.tokens}, features) nor ({self.rows}, ..., features)"
            )
        each = 1
        for size in shape[1:-1]:
            each *= size
        return tuple(Bound(bound.slot, bound.start * each, bound.end * each) for bound in self.row_bounds)

    def groups(self, shape: Sequence[int], slots: int) -> Groups:
        """The same for all slots of a pack, present or not."""
        key = tuple(shape[:-1]), slots
        if key not in self._groups:
            self._groups[key] = Groups.of(self.bounds(shape), slots, self.device)
        return self._groups[key]

    def spots(self, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(row, place in the row) of each vector of such a tensor, flattened; both int64."""
        if self.flows(shape):
            return self.token_rows, self.token_positions
        if self.is_read(shape):
            return self.token_rows[self.read_tokens], self.token_positions[self.read_tokens]
        each = 1
        for size in shape[1:-1]:
            each *= size
        rows = torch.arange(self.rows, device=self.device).repeat_interleave(each)
        return rows, torch.arange(each, device=self.device).repeat(self.rows)


_current: Stream | None = None


def current() -> Stream | None:
    """The micro-step that is being computed; None: the model is used for something else."""
    return _current


_speaker: int | None = None


def speaker() -> int | None:
    """Outside a micro-step: the slot whose adapter the model has; None: it has none."""
    return _speaker


@contextmanager
def speaking(slot: int) -> Iterator[None]:
    """Inside, the model as transformers knows it is this slot's alone: for its own code, as that which writes texts."""
    global _speaker
    before, _speaker = _speaker, slot
    try:
        yield
    finally:
        _speaker = before


@contextmanager
def computing(stream: Stream) -> Iterator[None]:
    """Layers see this micro-step inside; its backward pass belongs inside too, as it may compute layers anew."""
    global _current
    before, _current = _current, stream
    try:
        yield
    finally:
        _current = before
