"""LoRA of many slots as grouped matrix products: the same sums as `lora`, in a handful of kernels however many slots.

On a GPU a layer's loop over thirty slots launches two hundred kernels of a few microseconds each; grouped products do
all slots in one. Each slot's part of the tokens is a group, and ranks are those of the memory: what a slot does not use
is zero, and stays zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trial_worker.engine.stream import Bound, Groups


@dataclass(frozen=True, eq=False)
class Stack:
    """All slots' LoRA in one layer; views of the pack's memory.

    a, a_gradient: (slots, rank, inputs). b, b_gradient: (slots, rank, outputs). scales: (slots,), alpha / rank.
    """

    a: Tensor
    b: Tensor
    a_gradient: Tensor
    b_gradient: Tensor
    scales: Tensor


def is_worth_it(x: Tensor, bounds: Sequence[Bound]) -> bool:
    """Whether this device and type have grouped products, and there is more than one slot."""
    return x.is_cuda and x.dtype == torch.bfloat16 and len(bounds) > 1 and hasattr(functional, "grouped_mm")


class ApplyGrouped(torch.autograd.Function):
    """As `lora._Apply`, without dropout: x W^T + bias + scale * x A^T B; without a weight the last part alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, weight: Tensor | None, bias: Tensor | None, stack: Stack, groups: Groups
    ) -> Tensor:
        a, b = stack.a.to(x.dtype), stack.b.to(x.dtype)
        scales = stack.scales[groups.slots, None].to(x.dtype)
        inner = functional.grouped_mm(x, a.transpose(1, 2), offs=groups.ends) * scales
        delta = functional.grouped_mm(inner, b, offs=groups.ends)
        ctx.weight, ctx.stack, ctx.groups = weight, stack, groups
        ctx.save_for_backward(x, inner, a, b, scales)
        return delta if weight is None else functional.linear(x, weight, bias).add_(delta)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, inner, a, b, scales = ctx.saved_tensors
        stack, ends = ctx.stack, ctx.groups.ends
        gradient = gradient.contiguous()
        before = functional.grouped_mm(gradient, b.transpose(1, 2), offs=ends) * scales
        stack.b_gradient.add_(functional.grouped_mm(inner.t(), gradient, offs=ends))
        stack.a_gradient.add_(functional.grouped_mm(before.t(), x, offs=ends))
        onward = None
        if ctx.needs_input_grad[0]:
            onward = functional.grouped_mm(before, a, offs=ends)
            if ctx.weight is not None:
                onward.addmm_(gradient, ctx.weight)
        return onward, None, None, None, None, None
