"""Losses of a language model's supervised tokens without ever holding all their logits.

With a vocabulary of 150,000 the logits of a thousand tokens are 0.6 GB in float32, and autograd would keep them for the
backward pass. Here the head is applied to a few tokens at a time, and what the backward pass needs, the gradient with
respect to the states, is made on the way, as in Liger Kernel's fused linear cross-entropy (Hsu et al. 2024, arXiv
2410.10989).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trial_worker.tasks.interface import Answers

FLOATS = 1 << 25  # of logits at once: 128 MiB in float32


class _HeadLoss(torch.autograd.Function):
    """(targets,) float64 loss, nats and bool hits, of states (targets, hidden) and the frozen head."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        smoothing: Tensor | None,
        floats: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0]
        nats = states.new_empty(len(states), dtype=torch.float64)
        loss = nats if smoothing is None else torch.empty_like(nats)
        hits = torch.empty(len(states), dtype=torch.bool, device=states.device)
        slopes = torch.empty_like(states) if wanted else None
        size = max(floats // len(weight), 1)
        for start in range(0, len(states), size):
            part = slice(start, start + size)
            logits = torch.nn.functional.linear(states[part], weight, bias)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            chosen = targets[part, None]
            hits[part] = logits.argmax(-1) == targets[part]
            whole = logits.logsumexp(-1, keepdim=True)
            nats[part] = (whole - logits.gather(1, chosen)).squeeze(1).double()
            if smoothing is not None:
                spread = (whole.squeeze(1) - logits.mean(-1)).double()
                loss[part] = torch.lerp(nats[part], spread, smoothing[part].double())
            if slopes is not None:
                likely = (logits - whole).exp_()
                spread_out = 0.0 if smoothing is None else smoothing[part, None].to(likely.dtype)
                likely.scatter_add_(1, chosen, spread_out - likely.new_ones(chosen.shape))
                if smoothing is not None:
                    likely.sub_(spread_out / likely.shape[1])
                slopes[part] = likely.to(weight.dtype) @ weight
        ctx.mark_non_differentiable(hits)
        if smoothing is not None:
            ctx.mark_non_differentiable(nats)
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return loss, nats if smoothing is not None else nats.new_empty(0), hits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> Any:  # type: ignore[override]
        (slopes,) = ctx.saved_tensors
        return slopes * gradient[:, None].to(slopes.dtype), None, None, None, None, None


def head_loss(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    smoothing: Tensor | None = None,
    *,
    floats: int = FLOATS,
) -> Answers:
    """What a frozen linear head says of each target.

    states: (targets, hidden). weight: (vocabulary, hidden), frozen, as is bias. targets: (targets,) int64. smoothing:
    as `Batch.smoothing`.

    The softmax is taken in float32, or float64 if the model is.
    """
    loss, nats, hits = _HeadLoss.apply(states, weight, bias, targets, smoothing, floats)
    return Answers(loss, hits) if smoothing is None else Answers(nats, hits, smoothed=loss)
