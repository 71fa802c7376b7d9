"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): of each layer only its input is kept for going back.

transformers' own switch works in training mode alone, which would turn the model's dropout on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from trial_worker.engine.errors import UnusableModel


def recompute_layers(model: PreTrainedModel) -> None:
    """Compute each layer of the model anew in the backward pass, from now on.

    The backward pass must see the same micro-step as the forward pass, see `stream.computing`.

    Raises:
        UnusableModel: the family does not mark its layers as such that can be computed twice.
    """
    layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    if not layers:
        raise UnusableModel(
            f"model.gradient_checkpointing: {type(model).__name__} has no layers that can be computed anew"
        )
    for layer in layers:
        # The forward alone, not the call: the window's hooks would turn a stream into a stream once more.
        layer.forward = _recomputed(layer.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def compute(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        # Nothing in a layer draws from torch's generators: LoRA's dropout is a function of seed, step and row.
        return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False, **named)

    return compute
