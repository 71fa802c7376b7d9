"""LoRA for all slots of a pack in one layer (Hu et al. 2021, arXiv 2106.09685, equation 3).

Every slot has its own A and B, rank, scale and dropout; all share the frozen weight, which is multiplied once. Weights
and gradients live in the pack's flat memory (see `memory`), and the backward pass adds to the latter itself: only the
inputs are part of autograd's graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from trial_worker.engine import lora_grouped
from trial_worker.engine.dropout import mask, salt
from trial_worker.engine.lora_grouped import Stack
from trial_worker.engine.stream import Bound, Stream, current, speaker


@dataclass(frozen=True, eq=False)
class Factors:
    """One slot's LoRA in one layer; views of the pack's memory.

    a, a_gradient: (rank, inputs). b, b_gradient: (rank, outputs), PEFT's lora_B transposed.
    scale: alpha / rank. dropout: rate before A.
    """

    a: Tensor
    b: Tensor
    a_gradient: Tensor
    b_gradient: Tensor
    scale: float
    dropout: float


class Slots(Protocol):
    """Where a layer finds the slots' factors."""

    anchor: Tensor

    def factors(self, site: int, slot: int) -> Factors:
        """Of one layer and slot."""

    def stack(self, site: int) -> Stack:
        """Of one layer, all slots."""


class SlotLinear(nn.Module):
    """A frozen linear layer with a LoRA of each slot; takes the place of the layer while units train.

    site: its number in the pack's layout. name: its place in the model.
    """

    def __init__(self, base: nn.Module, site: int, name: str, slots: Slots) -> None:
        super().__init__()
        self.base = base
        self.site = site
        self.salt = salt(name)
        self.slots = slots
        self.frozen = _plain_weight(base)

    @property
    def weight(self) -> Any:
        """The frozen one: some families ask a layer for its weight's type before they call it."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        stream = current()
        if stream is None:
            plain: Tensor = self.base(x)
            return plain if (slot := speaker()) is None else plain + self._update(x, slot)
        bounds = stream.bounds(x.shape)
        factors = [self.slots.factors(self.site, bound.slot) for bound in bounds]
        masks = self._masks(x, stream, bounds, factors)
        flat = x.reshape(-1, x.shape[-1])
        weight, bias = self.frozen or (None, None)
        if lora_grouped.is_worth_it(x, bounds) and not any(kept is not None for kept in masks):
            stack = self.slots.stack(self.site)
            groups = stream.groups(x.shape, len(stack.scales))
            out = lora_grouped.ApplyGrouped.apply(flat, self.slots.anchor, weight, bias, stack, groups)
        else:
            out = _Apply.apply(flat, self.slots.anchor, weight, bias, bounds, factors, masks)
        whole: Tensor = out.view(*x.shape[:-1], -1)
        # a quantised weight can be multiplied by its layer only
        return whole if self.frozen is not None else self.base(x) + whole

    def _update(self, x: Tensor, slot: int) -> Tensor:
        """What one slot's LoRA adds, of inputs of any shape with features last; without dropout."""
        one = self.slots.factors(self.site, slot)
        return (x @ one.a.to(x.dtype).t() * one.scale) @ one.b.to(x.dtype)

    def _masks(
        self, x: Tensor, stream: Stream, bounds: Sequence[Bound], factors: Sequence[Factors]
    ) -> list[Tensor | None]:
        """For each bound, what its dropout leaves of the input; None: all."""
        if stream.keys is None or not any(one.dropout for one in factors):
            return [None] * len(bounds)
        rows, positions = stream.spots(x.shape)
        keys = stream.keys[rows]
        return [
            mask(keys[b.start : b.end], positions[b.start : b.end], self.salt, x.shape[-1], one.dropout)
            if one.dropout
            else None
            for b, one in zip(bounds, factors, strict=True)
        ]


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _plain_weight(base: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """(weight (outputs, inputs), bias) where the layer is just that; None for a quantised one."""
    weight = getattr(base, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.dim() != 2:
        return None
    if type(base) is Conv1D:
        return weight.detach().t(), base.bias.detach()
    if type(base) is nn.Linear:
        return weight.detach(), None if base.bias is None else base.bias.detach()
    return None


class _Apply(torch.autograd.Function):
    """x W^T + bias, and for each slot's vectors scale * dropout(x) A^T B; without a weight the second part alone.

    x: (vectors, inputs). anchor: a tensor that requires a gradient, or autograd would skip the first layer, whose
    input needs none. Gradients of A and B are added to the slots' own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        anchor: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        bounds: Sequence[Bound],
        factors: Sequence[Factors],
        masks: Sequence[Tensor | None],
    ) -> Tensor:
        out = x.new_zeros(len(x), factors[0].b.shape[1]) if weight is None else functional.linear(x, weight, bias)
        inner = []
        for bound, one, kept in zip(bounds, factors, masks, strict=True):
            part = dropped(x[bound.start : bound.end], kept, one.dropout)
            u = (part @ one.a.to(x.dtype).t()).mul_(one.scale)
            out[bound.start : bound.end].addmm_(u, one.b.to(x.dtype))
            inner.append(u)
        ctx.bounds, ctx.factors, ctx.weight = bounds, factors, weight
        ctx.masked = [kept is not None for kept in masks]
        ctx.save_for_backward(x, *inner, *(kept for kept in masks if kept is not None))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, *saved = ctx.saved_tensors
        inner, masks = saved[: len(ctx.bounds)], iter(saved[len(ctx.bounds) :])
        onward = None
        if ctx.needs_input_grad[0]:
            onward = torch.zeros_like(x) if ctx.weight is None else gradient @ ctx.weight
        for bound, one, u, masked in zip(ctx.bounds, ctx.factors, inner, ctx.masked, strict=True):
            kept = next(masks) if masked else None
            part = gradient[bound.start : bound.end]
            before = (part @ one.b.to(x.dtype).t()).mul_(one.scale)
            _add_product(one.b_gradient, u, part)
            _add_product(one.a_gradient, before, dropped(x[bound.start : bound.end], kept, one.dropout))
            if onward is not None:
                mine = onward[bound.start : bound.end]
                if kept is None:
                    mine.addmm_(before, one.a.to(x.dtype))
                else:
                    mine.add_(dropped(before @ one.a.to(x.dtype), kept, one.dropout))
        return onward, None, None, None, None, None, None


def dropped(x: Tensor, kept: Tensor | None, rate: float) -> Tensor:
    """What dropout at this rate leaves of the input; kept: its mask, None: all."""
    return x if kept is None else x * kept / (1 - rate)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left^T right, in total's precision."""
    if total.dtype == left.dtype:
        total.addmm_(left.t(), right)
    else:
        total.add_(left.t() @ right)
