"""From a batch to logits: the family's own head, mean pooling with a linear head, or a language-model head."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from trial_worker.engine.stream import current
from trial_worker.tasks.interface import Batch


class Reader(Protocol):
    """Computes logits (targets, outputs) of a batch on the model in which the slots' adapters are."""

    def __call__(self, batch: Batch) -> Tensor: ...


class SlotHead(nn.Module):
    """A trained module of which each slot has its own weights; takes the module's place while units train.

    weights: slot -> the module's parameters by their own names. Inputs and output have rows first.
    """

    def __init__(self, template: nn.Module, weights: Mapping[int, Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.template = template
        self.weights = weights

    def forward(self, *inputs: Any) -> Tensor:
        stream = current()
        if stream is None:
            plain: Tensor = self.template(*inputs)
            return plain
        outputs: list[Tensor] = []
        for bound in stream.row_bounds:
            mine = tuple(x[bound.start : bound.end] if isinstance(x, Tensor) else x for x in inputs)
            outputs.append(functional_call(self.template, dict(self.weights[bound.slot]), mine))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def read_family(model: PreTrainedModel) -> Reader:
    """`pooling: first`: the SequenceClassification class as its authors wrote it."""

    def logits(batch: Batch) -> Tensor:
        out: Tensor = model(input_ids=batch.ids, attention_mask=batch.mask).logits
        return out

    return logits


class MeanHead(nn.Module):
    """`pooling: mean`: mean over real tokens, then a linear layer.

    normalize: scale each mean to length sqrt(hidden) first. Models whose pooling files normalise carry all
        meaning in the direction; at length 1 a fresh linear head would see inputs of size 1 / sqrt(hidden) and
        learn that much more slowly than the adapter beside it. Nats for scale 8 and sqrt(384) = 19.6 (MiniLM, 300
        short texts, two folds, five epochs): 0.944 and 0.746 at learning rate 1e-3, 0.687 and 0.706 at 2e-3, 0.751
        and 0.879 at 5e-3. The best are alike; this one keeps low rates usable, whatever the hidden size.
    """

    def __init__(self, hidden: int, classes: int, normalize: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, classes)
        self.scale = math.sqrt(hidden) if normalize else None

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """Logits (rows, classes) from states (rows, tokens, hidden) and mask (rows, tokens)."""
        if mask is None:
            pooled = states.mean(1)
        else:
            real = mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * real).sum(1) / real.sum(1)
        if self.scale is not None:
            pooled = nn.functional.normalize(pooled, dim=-1) * self.scale
        out: Tensor = self.linear(pooled)
        return out


def read_mean(encoder: PreTrainedModel, head: nn.Module) -> Reader:
    """Mean pooling over the encoder's last states."""

    def logits(batch: Batch) -> Tensor:
        states = encoder(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
        out: Tensor = head(states, batch.mask)
        return out

    return logits


@contextmanager
def reading_tokens(model: PreTrainedModel) -> Iterator[Reader]:
    """A language model whose head computes logits at supervised positions only.

    The states are picked by a hook before the head, so that whatever the family does to its logits afterwards
    (scaling, soft caps) still happens.
    """
    chosen: list[Tensor] = []

    def pick(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        states = arguments[0]  # (rows, tokens, hidden)
        return (states.flatten(0, 1).index_select(0, chosen[-1]).unsqueeze(0), *arguments[1:])

    def logits(batch: Batch) -> Tensor:
        assert batch.positions is not None
        chosen[:] = [batch.positions]
        out: Tensor = model(input_ids=batch.ids, attention_mask=batch.mask).logits
        return out.squeeze(0)  # (supervised tokens, vocabulary)

    head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    hook = head.register_forward_pre_hook(pick)
    try:
        yield logits
    finally:
        hook.remove()


def initialise(module: nn.Module, std: float) -> None:
    """Fresh weights as transformers gives a head: normal with the model's `initializer_range`, biases 0.

    Draws from torch's global stream, in the order of the modules' names.
    """
    with torch.no_grad():
        for _, part in sorted(module.named_modules()):
            if isinstance(part, nn.Linear):
                part.weight.normal_(0.0, std)
                if part.bias is not None:
                    part.bias.zero_()
            elif any(True for _ in part.parameters(recurse=False)):
                part.reset_parameters()
