"""AdamW as Hugging Face's Trainer sets it up, for one slot of a pack, and the course of the learning rate."""

from __future__ import annotations

import math
import re

import torch
from torch.optim.adamw import adamw

from orchestrator.contract import Settings
from trial_worker.engine.memory import Memory

_NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def decays(name: str) -> bool:
    """Whether weight decay applies to a parameter: not to biases and norms."""
    return not _NO_DECAY.search(name.lower())


def step(memory: Memory, slot: int, settings: Settings, learning_rate: float) -> None:
    """One step of AdamW (betas 0.9 and 0.999, eps 1e-8) on a slot's weights; its gradients are zero afterwards."""
    border = memory.layout.decayed
    count = memory.steps[slot]
    before = count.clone()
    for part, decay in ((slice(None, border), settings.weight_decay), (slice(border, None), 0.0)):
        if memory.weights[slot, part].numel() == 0:
            continue
        count.copy_(before)  # each part counts the step
        adamw(
            [memory.weights[slot, part]],
            [memory.gradients[slot, part]],
            [memory.mean[slot, part]],
            [memory.square[slot, part]],
            [],
            [count],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=learning_rate,
            weight_decay=decay,
            eps=1e-8,
            maximize=False,
        )
    memory.gradients[slot].zero_()


def clip(memory: Memory, slot: int, norm: float, limit: float) -> None:
    """Scale a slot's gradients down so that their norm is at most `limit`; 0 leaves them."""
    if limit > 0 and (factor := limit / (norm + 1e-6)) < 1:  # torch's epsilon
        memory.gradients[slot].mul_(factor)


def gradient_norms(memory: Memory, slots: list[int]) -> list[float]:
    """Euclidean norm of each slot's gradients; one wait for the device."""
    return torch.stack([torch.linalg.vector_norm(memory.gradients[slot]) for slot in slots]).tolist()


def schedule_factor(settings: Settings, step: int, steps: int) -> float:
    """What the peak learning rate is multiplied by at `step` (0-based) of `steps`; as in transformers.

    Raises:
        ValueError: lr_schedule is not constant, linear or cosine.
    """
    schedule, warmup = settings.lr_schedule, settings.warmup(steps)
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
