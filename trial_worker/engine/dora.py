"""DoRA for all slots of a pack in one layer (Liu et al. 2024, arXiv 2402.09353, equation 11), as PEFT has it.

Beside LoRA's factors each slot has a magnitude for every output of the layer. With dropout(x) = x the layer gives

    magnitude / |W + scale B A| * (x W^T + scale x A^T B) + bias

where |.| is the length of each output's row of weights, through which no gradient flows (section 4.3). Where LoRA's
input has dropout, W is multiplied with both: x as it is, and the dropped one for what the magnitude adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from trial_worker.engine import lora
from trial_worker.engine.lora import Factors, SlotLinear, dropped
from trial_worker.engine.memory import HeadWeight, Site
from trial_worker.engine.optimizer import decays
from trial_worker.engine.stream import Bound, current, speaker


@dataclass(frozen=True, eq=False)
class Directed:
    """One slot's DoRA in one layer, as leaves of autograd's graph that are views of the pack's memory.

    a: (rank, inputs). b: (rank, outputs). magnitude: (outputs,). scale: as `Factors.scale`.
    """

    a: Tensor
    b: Tensor
    magnitude: Tensor
    scale: float

    @classmethod
    def of(cls, factors: Factors, magnitude: Tensor, gradient: Tensor) -> Directed:
        """From a slot's LoRA factors, and its magnitude's weights and gradients."""
        a, b = _leaf(factors.a, factors.a_gradient), _leaf(factors.b, factors.b_gradient)
        return cls(a, b, _leaf(magnitude, gradient), factors.scale)


class Slots(Protocol):
    """Where a layer finds the slots' weights."""

    def directed(self, site: int, slot: int) -> Directed:
        """Of one layer and slot."""


class SlotDora(SlotLinear):
    """As `SlotLinear`, of DoRA. Only what autograd itself differentiates: nothing here is fused."""

    def __init__(self, base: nn.Module, site: int, name: str, slots: lora.Slots) -> None:
        super().__init__(base, site, name, slots)
        self.squares: Tensor | None = None  # (outputs,) of the frozen weight's rows

    def forward(self, x: Tensor) -> Tensor:
        stream = current()
        bounds: Sequence[Bound]
        masks: list[Tensor | None]
        if stream is not None:
            bounds = stream.bounds(x.shape)
            masks = self._masks(x, stream, bounds, [self.slots.factors(self.site, bound.slot) for bound in bounds])
        elif (slot := speaker()) is not None:
            bounds, masks = [Bound(slot, 0, x.shape[:-1].numel())], [None]
        else:
            plain: Tensor = self.base(x)
            return plain
        flat, weight = x.reshape(-1, x.shape[-1]), dense_weight(self.base).to(x.dtype)
        through = functional.linear(flat, weight)
        if self.squares is None:
            self.squares = weight.to(self.slots.anchor.dtype).square().sum(1)
        parts = []
        for bound, kept in zip(bounds, masks, strict=True):
            one = cast(Slots, self.slots).directed(self.site, bound.slot)
            rate = self.slots.factors(self.site, bound.slot).dropout
            size = (one.magnitude / norms(weight, self.squares, one)).to(x.dtype)
            mine = dropped(flat[bound.start : bound.end], kept, rate)
            update = (mine @ one.a.to(x.dtype).t() * one.scale) @ one.b.to(x.dtype)
            straight = through[bound.start : bound.end]
            if kept is None:
                parts.append(size * (straight + update))
            else:
                parts.append(straight + (size - 1) * functional.linear(mine, weight) + size * update)
        out = torch.cat(parts)
        bias = getattr(self.base, "bias", None)
        return (out if bias is None else out + bias.to(out.dtype)).view(*x.shape[:-1], -1)


def magnitude_of(site: Site) -> str:
    """The parameter's name, as PEFT has it."""
    return f"{site.prefix}.lora_magnitude_vector.default.weight"


def magnitude_weight(site: Site) -> HeadWeight:
    """The parameter; what is decayed of it is what Hugging Face's Trainer decays."""
    name = magnitude_of(site)
    return HeadWeight(name, (site.outputs,), decays(name))


def row_norms(base: nn.Module, dtype: torch.dtype) -> Tensor:
    """(outputs,) the lengths of a layer's rows of weights, with which a magnitude begins.

    dtype: as `norms` will have them; rounded to the weights' own, the untrained model would be another one.
    """
    weight = dense_weight(base.base if isinstance(base, SlotLinear) else base)
    return weight.to(dtype).square().sum(1).sqrt()


def dense_weight(base: nn.Module) -> Tensor:
    """(outputs, inputs) of a linear layer, whatever holds its weights."""
    weight = cast(Tensor, dequantize_module_weight(base)).detach()
    return weight.t() if type(base) is Conv1D else weight


@torch.no_grad()
def norms(weight: Tensor, squares: Tensor, one: Directed) -> Tensor:
    """(outputs,) the lengths of the rows of weight + scale B A, without that matrix: |w|^2 + 2 s w.d + s^2 |d|^2.

    squares: (outputs,) those of the weight's rows.
    """
    across = (weight @ one.a.to(weight.dtype).t()).to(one.a.dtype)  # (outputs, rank)
    crossed = (across * one.b.t()).sum(1)
    own = ((one.a @ one.a.t()) @ one.b * one.b).sum(0)
    lengths: Tensor = (squares + 2 * one.scale * crossed + one.scale**2 * own).clamp_min(0).sqrt()
    return lengths


def _leaf(weights: Tensor, gradients: Tensor) -> Tensor:
    leaf = weights.detach().requires_grad_()
    leaf.grad = gradients  # autograd adds to it in place
    return leaf
