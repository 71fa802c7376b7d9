"""AdamW as Hugging Face's Trainer sets it up, and the course of the learning rate."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import nn

from orchestrator.contract import Settings

_NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def build(parameters: Mapping[str, nn.Parameter], settings: Settings) -> torch.optim.AdamW:
    """AdamW with betas (0.9, 0.999) and eps 1e-8; biases and norms are not decayed."""
    decayed = [p for name, p in parameters.items() if not _NO_DECAY.search(name.lower())]
    plain = [p for name, p in parameters.items() if _NO_DECAY.search(name.lower())]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
        fused=True,
    )


def schedule_factor(schedule: str, step: int, steps: int, warmup_ratio: float) -> float:
    """What the peak learning rate is multiplied by at `step` (0-based) of `steps`; as in transformers.

    Raises:
        ValueError: schedule is not constant, linear or cosine.
    """
    warmup = math.ceil(steps * warmup_ratio)
    if step < warmup:
        return step / max(1, warmup)
    done = (step - warmup) / max(1, steps - warmup)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return max(0.0, 1.0 - done)
    if schedule == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))
    raise ValueError(f"lr_schedule must be constant, linear or cosine, got {schedule!r}")


def gradient_norm(parameters: Mapping[str, nn.Parameter]) -> torch.Tensor:
    """Euclidean norm over all gradients; 0-dimensional."""
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def clip(parameters: Mapping[str, nn.Parameter], norm: torch.Tensor, limit: float) -> None:
    """Scale gradients down so that their norm is at most `limit`; 0 leaves them."""
    if limit > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters.values(), limit, norm)
