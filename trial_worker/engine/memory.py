"""The trainable weights of all slots: one row each of a few flat matrices.

A row is all of a slot's LoRA factors and its head, so that clipping, AdamW and clearing gradients are a handful of
operations whatever the model's depth. Ranks differ: each factor has room for the largest rank in the pack, and what
a slot does not use stays zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from trial_worker.engine.lora import Factors
from trial_worker.engine.lora_grouped import Stack


@dataclass(frozen=True)
class Site:
    """A layer with LoRA. name: its place in the model. prefix: of its parameters' names, as PEFT has them."""

    name: str
    prefix: str
    inputs: int
    outputs: int

    @property
    def a(self) -> str:
        return f"{self.prefix}.lora_A.default.weight"

    @property
    def b(self) -> str:
        return f"{self.prefix}.lora_B.default.weight"


@dataclass(frozen=True)
class HeadWeight:
    """A parameter of a head. decays: whether weight decay applies to it."""

    name: str
    shape: tuple[int, ...]
    decays: bool

    @property
    def size(self) -> int:
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Layout:
    """Where everything lies in a slot's row: factors A and B of each site, then heads, what does not decay last."""

    sites: tuple[Site, ...]
    heads: tuple[HeadWeight, ...]
    rank: int  # the most that fits

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Of each site's A; its B follows."""
        return tuple(accumulate((self.rank * (site.inputs + site.outputs) for site in self.sites), initial=0))

    @cached_property
    def _ordered_heads(self) -> tuple[HeadWeight, ...]:
        return tuple(sorted(self.heads, key=lambda head: not head.decays))

    @cached_property
    def decayed(self) -> int:
        """Weight decay applies to so many numbers at the start of a row."""
        return self.starts[-1] + sum(head.size for head in self.heads if head.decays)

    @cached_property
    def size(self) -> int:
        return self.starts[-1] + sum(head.size for head in self.heads)

    def factors(self, row: Tensor, site: int, rank: int) -> tuple[Tensor, Tensor]:
        """Views (rank, inputs) and (rank, outputs) of one site in a slot's row."""
        one, start = self.sites[site], self.starts[site]
        middle = start + self.rank * one.inputs
        a = row[start : start + rank * one.inputs].view(rank, one.inputs)
        b = row[middle : middle + rank * one.outputs].view(rank, one.outputs)
        return a, b

    def head_views(self, row: Tensor) -> dict[str, Tensor]:
        """name -> view in its own shape."""
        views, start = {}, self.starts[-1]
        for head in self._ordered_heads:
            views[head.name] = row[start : start + head.size].view(head.shape)
            start += head.size
        return views

    def named(self, row: Tensor, rank: int) -> dict[str, Tensor]:
        """A slot's row under PEFT's names and in its shapes: lora_A (rank, inputs), lora_B (outputs, rank)."""

        def found() -> Iterator[tuple[str, Tensor]]:
            for number, site in enumerate(self.sites):
                a, b = self.factors(row, number, rank)
                yield site.a, a
                yield site.b, b.t()
            yield from self.head_views(row).items()

        return dict(found())


class Memory:
    """Weights, gradients and AdamW's moments of every slot, (slots, layout.size) each.

    One more thing lives here, `anchor`: see `lora._Apply`.
    """

    def __init__(self, layout: Layout, slots: int, device: torch.device, dtype: torch.dtype) -> None:
        self.layout = layout
        self.weights, self.gradients, self.mean, self.square = (
            torch.zeros(slots, layout.size, device=device, dtype=dtype) for _ in range(4)
        )
        self.steps = [torch.zeros((), device=device) for _ in range(slots)]
        self.anchor = torch.zeros((), device=device, dtype=dtype, requires_grad=True)
        self.scales = torch.zeros(slots, device=device, dtype=dtype)
        self._factors: dict[tuple[int, int], Factors] = {}
        self._stacks: dict[int, Stack] = {}
        self._ranks: dict[int, int] = {}

    def open(self, slot: int, rank: int, scale: float, dropout: float) -> None:
        """A unit of this rank takes the slot; all its numbers are zero."""
        assert rank <= self.layout.rank
        self.close(slot)
        self._ranks[slot] = rank
        self.scales[slot] = scale
        weights, gradients = self.weights[slot], self.gradients[slot]
        for site in range(len(self.layout.sites)):
            pairs = self.layout.factors(weights, site, rank), self.layout.factors(gradients, site, rank)
            self._factors[site, slot] = Factors(*pairs[0], *pairs[1], scale, dropout)

    def close(self, slot: int) -> None:
        """Nothing of the unit stays: the next one would start from it, or from its moments."""
        for matrix in (self.weights, self.gradients, self.mean, self.square):
            matrix[slot].zero_()
        self.steps[slot].zero_()
        self._ranks.pop(slot, None)

    def factors(self, site: int, slot: int) -> Factors:
        """Of one layer and slot."""
        return self._factors[site, slot]

    def stack(self, site: int) -> Stack:
        """Of one layer, all slots; what a slot does not use of the largest rank is zero."""
        if site not in self._stacks:
            layout = self.layout
            one, start = layout.sites[site], layout.starts[site]
            middle = start + layout.rank * one.inputs
            end = middle + layout.rank * one.outputs
            a, a_gradient = (m[:, start:middle].unflatten(1, (layout.rank, -1)) for m in (self.weights, self.gradients))
            b, b_gradient = (m[:, middle:end].unflatten(1, (layout.rank, -1)) for m in (self.weights, self.gradients))
            self._stacks[site] = Stack(a, b, a_gradient, b_gradient, self.scales)
        return self._stacks[site]

    def named(self, slot: int) -> dict[str, Tensor]:
        """The slot's weights by name; views."""
        return self.layout.named(self.weights[slot], self._ranks[slot])

    def moments(self, slot: int) -> dict[str, dict[str, Tensor]]:
        """AdamW's exp_avg and exp_avg_sq by the weights' names; views."""
        rank = self._ranks[slot]
        return {
            "exp_avg": self.layout.named(self.mean[slot], rank),
            "exp_avg_sq": self.layout.named(self.square[slot], rank),
        }

    def copy_from(self, other: Memory, slot: int) -> None:
        """Take over a slot from a memory of another layout, its place in the accumulation included."""
        pairs = zip(
            (self.weights, self.gradients, self.mean, self.square),
            (other.weights, other.gradients, other.mean, other.square),
            strict=True,
        )
        for mine, theirs in pairs:
            new = self.layout.named(mine[slot], self._ranks[slot])
            for name, tensor in other.layout.named(theirs[slot], other._ranks[slot]).items():
                new[name].copy_(tensor)
        self.steps[slot].copy_(other.steps[slot])
