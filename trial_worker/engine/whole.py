"""Full fine-tuning: one unit trains the model's own weights, alone in its pack.

The weights of the base are lent to the unit: while it trains, the model's parameters are views of the pack's flat
memory, so that optimizer, clipping and checkpoints are those of every other unit. Afterwards it has its own back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from transformers import PreTrainedModel

from orchestrator.contract import Settings
from trial_worker.engine.base import Base
from trial_worker.engine.heads import Answer, MeanHead, Reader, fresh_heads, head_std
from trial_worker.engine.installed import Installed
from trial_worker.engine.memory import HeadWeight, Layout, Memory
from trial_worker.engine.noise import noise_in_place
from trial_worker.engine.optimizer import decays
from trial_worker.engine.survey import MEAN_HEAD, Kind, layers_above
from trial_worker.tasks.interface import answers


class WholeNetwork(Installed):
    """One slot, in which the model itself is trained, or its last layers, and its head."""

    def __init__(self, base: Base, kind: Kind, answer: Answer = answers) -> None:
        """Raises ValueError if the frozen weights are not held in full precision."""
        held = base.model.dtype
        if base.pin.quantization != "none" or held not in (torch.float32, torch.float64):
            how = base.pin.quantization if base.pin.quantization != "none" else str(held).removeprefix("torch.")
            raise ValueError(f"method full trains the weights themselves, which must be float32: the base is {how}")
        super().__init__(base, kind, 1, answer)
        mean = kind.pooling == "mean"
        self.model = cast(PreTrainedModel, base.model.base_model) if mean else base.model
        hidden = int(base.model.config.get_text_config().hidden_size)
        self._mean = MeanHead(hidden, kind.classes, base.pin.normalize).to(base.device) if mean else None
        self._heads = {name: copy.deepcopy(self.model.get_submodule(name)) for name in (() if mean else base.heads)}
        self._trained = {name: p for name, p in self.model.named_parameters() if self._is_trained(name)}
        if self._mean is not None:
            self._heads[MEAN_HEAD] = MeanHead(hidden, kind.classes, base.pin.normalize)
            self._trained |= {f"{MEAN_HEAD}.{name}": p for name, p in self._mean.named_parameters()}
        weights = tuple(HeadWeight(name, tuple(p.shape), decays(name)) for name, p in self._trained.items())
        self.memory = Memory(Layout((), weights, rank=0), 1, base.device, held)

    def _is_trained(self, name: str) -> bool:
        if self.kind.pooling == "mean" and "pooler" in name.split("."):
            return False  # nothing reads it
        if not self.kind.top_layers or any(name.startswith(f"{head}.") for head in self._heads):
            return True
        above = layers_above(self.model, name)
        return above is not None and above < self.kind.top_layers

    def grows(self, rank: int) -> bool:
        """As `Installed.grows`: it has no adapters."""
        return False

    def open(self, slot: int, settings: Settings, seed: int) -> None:
        """As `Installed.open`: pretrained weights, and a fresh head."""
        self._refuse_unless_possible(settings)
        self.memory.open(slot, 0, 0.0, 0.0)
        self._open[slot] = settings
        fresh = fresh_heads(self._heads, seed, head_std(self.base.model))
        for name, view in self.memory.named(slot).items():
            view.copy_(fresh.get(name, self._trained[name].detach()))

    @contextmanager
    def _in_place(self) -> Iterator[Reader]:
        own = {name: p.data for name, p in self._trained.items()}
        memory = self.memory
        weights, gradients = (memory.layout.head_views(row[0]) for row in (memory.weights, memory.gradients))
        try:
            for name, p in self._trained.items():
                p.data = weights[name]
                p.requires_grad_()
                p.grad = gradients[name]  # autograd adds to it in place
            # a language model's head is trained as well, so that the model's own code has to apply it
            with (
                noise_in_place(self.model, self._open),
                self._reading(self.model, self._mean, plain_head=False) as reader,
            ):
                yield reader
        finally:
            for name, p in self._trained.items():
                p.requires_grad_(False)
                p.grad, p.data = None, own[name]
