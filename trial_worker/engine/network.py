"""All slots' adapters and heads on the resident base, of one kind of unit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from orchestrator.contract import Settings, derive_seed
from trial_worker.engine.base import Base
from trial_worker.engine.dora import Directed, SlotDora, magnitude_of, magnitude_weight, row_norms
from trial_worker.engine.heads import Answer, Reader, SlotHead, fresh_heads, head_std
from trial_worker.engine.installed import Installed
from trial_worker.engine.lora import Factors, SlotLinear
from trial_worker.engine.lora_grouped import Stack
from trial_worker.engine.memory import Layout, Memory
from trial_worker.engine.noise import SlotDropout, noise_in_place
from trial_worker.engine.survey import Head, Kind, Survey, head_weights, lora_scale, survey
from trial_worker.tasks.interface import answers

RANKS = 8  # grouped products want rows of whole 16 bytes, in half precision


class Network(Installed):
    """Adapters of up to `slots` units on a base."""

    def __init__(self, base: Base, kind: Kind, slots: int, answer: Answer = answers) -> None:
        super().__init__(base, kind, slots, answer)
        self.survey: Survey = survey(base, kind)
        self._heads = head_weights(self.survey.heads)
        if kind.dora:
            self._heads += tuple(magnitude_weight(site) for site in self.survey.sites)
        self._directed: dict[tuple[int, int], Directed] = {}
        self._head_views: dict[str, dict[int, Mapping[str, Tensor]]] = {one.prefix: {} for one in self.survey.heads}
        self.memory = self._memory(rank=0)

    @property
    def anchor(self) -> Tensor:
        return self.memory.anchor

    def factors(self, site: int, slot: int) -> Factors:
        """As `lora.Slots`."""
        return self.memory.factors(site, slot)

    def stack(self, site: int) -> Stack:
        """As `lora.Slots`."""
        return self.memory.stack(site)

    def directed(self, site: int, slot: int) -> Directed:
        """As `dora.Slots`."""
        return self._directed[site, slot]

    def open(self, slot: int, settings: Settings, seed: int) -> None:
        """As `Installed.open`: PEFT's fresh weights for LoRA, transformers' for a head."""
        self._refuse_unless_possible(settings)
        if self.grows(settings.lora_rank):
            self._grow(_whole(settings.lora_rank))
        self._enter(slot, settings)
        named = self.memory.named(slot)
        for name, value in self._fresh(settings.lora_rank, seed).items():
            named[name].copy_(value)

    def grows(self, rank: int) -> bool:
        """As `Installed.grows`."""
        return rank > self.memory.layout.rank

    def slot_bytes(self, rank: int) -> int:
        """Of one slot with room for this rank: weights, gradients and both moments."""
        layout = Layout(self.survey.sites, self._heads, _whole(rank))
        return 4 * layout.size * self.memory.weights.element_size()

    def _enter(self, slot: int, settings: Settings) -> None:
        self.memory.open(slot, settings.lora_rank, lora_scale(settings), settings.lora_dropout)
        self._open[slot] = settings
        weights = self.memory.layout.head_views(self.memory.weights[slot])
        gradients = self.memory.layout.head_views(self.memory.gradients[slot])
        for head in self.survey.heads:
            own = {}
            for name, _ in head.template.named_parameters():
                leaf = weights[f"{head.prefix}.{name}"].detach().requires_grad_()
                leaf.grad = gradients[f"{head.prefix}.{name}"]  # autograd adds to it in place
                own[name] = leaf
            self._head_views[head.prefix][slot] = own
        if self.kind.dora:
            for number, site in enumerate(self.survey.sites):
                name = magnitude_of(site)
                self._directed[number, slot] = Directed.of(
                    self.memory.factors(number, slot), weights[name], gradients[name]
                )

    def _grow(self, rank: int) -> None:
        """Room for a larger rank; whoever trains keeps all its numbers."""
        before, self.memory = self.memory, self._memory(rank)
        for slot, settings in self._open.items():
            self._enter(slot, settings)
            self.memory.copy_from(before, slot)

    def _memory(self, rank: int) -> Memory:
        layout = Layout(self.survey.sites, self._heads, rank)
        wide = torch.float64 if self.base.model.dtype == torch.float64 else torch.float32
        return Memory(layout, self.slots, self.base.device, wide)

    def _fresh(self, rank: int, seed: int) -> dict[str, Tensor]:
        """lora_A uniform within 1 / sqrt(inputs), as PEFT's kaiming_uniform with a = sqrt(5); lora_B zero."""
        generator = torch.Generator().manual_seed(derive_seed(seed, "initialisation"))
        fresh: dict[str, Tensor] = {}
        for site in self.survey.sites:
            limit = site.inputs**-0.5
            fresh[site.a] = torch.empty(rank, site.inputs).uniform_(-limit, limit, generator=generator)
            fresh[site.b] = torch.zeros(site.outputs, rank)
            if self.kind.dora:
                fresh[magnitude_of(site)] = row_norms(self.survey.model.get_submodule(site.name), self.anchor.dtype)
        fresh |= fresh_heads(
            {head.prefix: head.template for head in self.survey.heads}, seed, head_std(self.base.model)
        )
        return fresh

    @contextmanager
    def _in_place(self) -> Iterator[Reader]:
        # noise first: the heads' templates have dropouts of their own, which see one slot's rows only
        with noise_in_place(self.survey.model, self._open), self._adapters_in_place() as reader:
            yield reader

    @contextmanager
    def _adapters_in_place(self) -> Iterator[Reader]:
        model, before = self.survey.model, {}
        mean = None
        try:
            for number, site in enumerate(self.survey.sites):
                before[site.name] = model.get_submodule(site.name)
                layer = SlotDora if self.kind.dora else SlotLinear
                model.set_submodule(site.name, layer(before[site.name], number, site.name, self))
            for head in self.survey.heads:
                own = self._head(head)
                if head.name:
                    before[head.name] = model.get_submodule(head.name)
                    model.set_submodule(head.name, own)
                else:
                    mean = own
            head_of_words = model.get_output_embeddings()  # type: ignore[no-untyped-call]
            plain = self.base.plain_head and type(head_of_words) is nn.Linear  # no adapter is on it
            with self._reading(model, mean, plain_head=plain) as reader:
                yield reader
        finally:
            for name, module in before.items():
                model.set_submodule(name, module)

    def _head(self, head: Head) -> SlotHead:
        drops = any(type(part) is nn.Dropout for part in head.template.modules())
        dropout = SlotDropout(head.prefix, self._open) if drops else None
        return SlotHead(head.template, self._head_views[head.prefix], dropout)


def _whole(rank: int) -> int:
    return math.ceil(rank / RANKS) * RANKS
