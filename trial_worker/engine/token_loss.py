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

FLOATS = 1 << 25  # of logits at once: 128 MiB in float32


class _HeadLoss(torch.autograd.Function):
    """(targets,) float64 nats and (targets,) bool hits, of states (targets, hidden) and the frozen head."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, floats: int
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0]
        nats = states.new_empty(len(states), dtype=torch.float64)
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
            if slopes is not None:
                likely = (logits - whole).exp_()
                likely.scatter_add_(1, chosen, likely.new_full(chosen.shape, -1.0))
                slopes[part] = likely.to(weight.dtype) @ weight
        ctx.mark_non_differentiable(hits)
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return nats, hits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Any:  # type: ignore[override]
        (slopes,) = ctx.saved_tensors
        return slopes * gradient[:, None].to(slopes.dtype), None, None, None, None


def head_loss(
    states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, floats: int = FLOATS
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each target, and whether it was the most likely token.

    states: (targets, hidden). weight: (vocabulary, hidden), frozen, as is bias. targets: (targets,) int64.

    Returns:
        (targets,) float64 and (targets,) bool. The softmax is taken in float32, or float64 if the model is.
    """
    nats, hits = _HeadLoss.apply(states, weight, bias, targets, floats)
    return nats, hits
