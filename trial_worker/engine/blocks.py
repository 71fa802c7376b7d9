"""Rows of a stream in dense blocks of like length, as attention multiplies them.

A block is padded to its longest row. It holds (rows, heads, length) vectors of one head's size each; all blocks stand
one after another in one padded tensor, so that a single copy fills them all and another one empties them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trial_worker.engine.batches import split_by_length

_OVERHEAD = (
    40  # what a block's own operations cost, in tokens: 150 us against 3.7 us a token of 24 (12 heads, one core)
)
_MOST = 1 << 12  # padded tokens of a block: its scores should not leave the processor's caches by far


@dataclass(frozen=True)
class Block:
    """`rows`: numbers of the stream's rows. start: padded tokens of the blocks before it."""

    rows: tuple[int, ...]
    length: int
    start: int

    def of(self, padded: Tensor, heads: int) -> Tensor:
        """(rows * heads, length, size), a view of this block in the padded tensor (vectors, size)."""
        begin, count = self.start * heads, len(self.rows) * self.length * heads
        return padded[begin : begin + count].view(len(self.rows) * heads, self.length, -1)


@dataclass(frozen=True, eq=False)
class Blocks:
    """How a stream's rows make blocks. lengths: tokens of each row."""

    lengths: tuple[int, ...]
    device: torch.device
    blocks: tuple[Block, ...]
    _places: dict[tuple[int, int], Places] = field(default_factory=dict, repr=False)
    _forbidden: dict[Any, list[Tensor | None]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Blocks:
        """Rows of like length together, so that padding and the number of blocks cost least."""
        blocks, start = [], 0
        for rows in split_by_length(lengths, len(lengths), _MOST, _OVERHEAD):
            length = max(lengths[row] for row in rows)
            blocks.append(Block(tuple(rows), length, start))
            start += len(rows) * length
        return cls(tuple(lengths), device, tuple(blocks))

    def places(self, heads: int, key_heads: int) -> Places:
        """Where each vector comes from and goes to."""
        key = heads, key_heads
        if key not in self._places:
            self._places[key] = Places.of(self, heads, key_heads)
        return self._places[key]

    def forbidden(self, causal: bool, reach: int | None) -> list[Tensor | None]:
        """For each block (rows, 1, length, length), whom a token must not attend to; None: everybody may be seen.

        reach: tokens that one sees to each side, itself included to the left. A token of the padding may see itself,
        since a softmax over nothing is not a number, and would make everybody's gradient one.
        """
        key = causal, reach
        if key not in self._forbidden:
            self._forbidden[key] = [self._mask(block, causal, reach) for block in self.blocks]
        return self._forbidden[key]

    def _mask(self, block: Block, causal: bool, reach: int | None) -> Tensor | None:
        sizes = [self.lengths[row] for row in block.rows]
        near = reach if reach is not None and reach < block.length else None
        padded = min(sizes) < block.length
        if not ((causal and block.length > 1) or near is not None or padded):
            return None
        at = torch.arange(block.length, device=self.device)
        ahead = at[None, :] - at[:, None]  # of the one that looks, (length, length)
        banned = torch.zeros_like(ahead, dtype=torch.bool)
        if causal:
            banned |= ahead > 0
        if near is not None:
            banned |= (ahead <= -near) if causal else (ahead.abs() > near)
        unreal = at[None, :] >= torch.tensor(sizes, device=self.device)[:, None]
        whole = banned[None] | (unreal[:, None, :] & (ahead != 0)[None])
        return whole[:, None]


@dataclass(frozen=True, eq=False)
class Places:
    """Numbers of vectors; a token has one for each head.

    queries, keys: for each vector of the padded tensor, whose copy it is among the stream's; padding repeats its row's
    last token. padding: which vectors of the padded tensor are that. back: for each of the stream's, its place in the
    padded tensor.
    """

    queries: Tensor
    keys: Tensor
    padding: Tensor | None
    back: Tensor

    @classmethod
    def of(cls, blocks: Blocks, heads: int, key_heads: int) -> Places:
        """Of so many heads; several query heads may share a key head, neighbours do."""
        starts = torch.tensor([0, *blocks.lengths]).cumsum(0)
        head = torch.arange(heads)
        shared = head // (heads // key_heads)
        queries, keys, padding = [], [], []
        back = torch.empty(int(starts[-1]), heads, dtype=torch.int64)
        for block in blocks.blocks:
            rows = torch.tensor(block.rows)
            sizes = torch.tensor([blocks.lengths[row] for row in block.rows])[:, None]
            at = torch.arange(block.length)[None]
            token = starts[rows][:, None] + torch.minimum(at, sizes - 1)  # (rows, length)
            real = at < sizes
            place = (
                block.start * heads
                + (torch.arange(len(rows))[:, None, None] * heads + head[None, :, None]) * block.length
                + at[:, None]
            )  # (rows, heads, length)
            queries.append((token[:, None] * heads + head[None, :, None]).flatten())
            keys.append((token[:, None] * key_heads + shared[None, :, None]).flatten())
            padding.append(place.transpose(1, 2)[~real].flatten())
            back[token[real]] = place.transpose(1, 2)[real]
        pads = torch.cat(padding)
        device = blocks.device
        return cls(
            queries=torch.cat(queries).to(device),
            keys=torch.cat(keys).to(device),
            padding=pads.to(device) if len(pads) else None,
            back=back.flatten().to(device),
        )
