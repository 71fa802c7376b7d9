"""From a batch to logits: the family's own head, mean pooling with a linear head, or a language-model head."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from orchestrator.contract import derive_seed
from trial_worker.engine.stream import current
from trial_worker.engine.token_loss import head_loss
from trial_worker.tasks.interface import Answers, Batch, answers

Answer = Callable[[Tensor, Batch], Answers]  # as `Task.answer`


class Reader(Protocol):
    """What the model in which the slots' adapters are says of a batch's targets."""

    def __call__(self, batch: Batch) -> Answers: ...


class SlotHead(nn.Module):
    """A trained module of which each slot has its own weights; takes the module's place while units train.

    weights: slot -> the module's parameters by their own names. Inputs and output have rows first. dropout: of the
    inputs, where the module has one of its own, which would draw for all slots alike.
    """

    def __init__(
        self, template: nn.Module, weights: Mapping[int, Mapping[str, Tensor]], dropout: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.template = template
        self.weights = weights
        self.dropout = dropout

    def forward(self, *inputs: Any) -> Tensor:
        stream = current()
        if stream is None:
            plain: Tensor = self.template(*inputs)
            return plain
        if self.dropout is not None:
            inputs = (self.dropout(inputs[0]), *inputs[1:])
        outputs: list[Tensor] = []
        for bound in stream.row_bounds:
            weights = dict(self.weights[bound.slot])
            wide = next(iter(weights.values())).dtype
            mine = tuple(_as(x[bound.start : bound.end], wide) if isinstance(x, Tensor) else x for x in inputs)
            outputs.append(functional_call(self.template, weights, mine))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A head computes in its own precision, whatever the frozen layers before it do."""
    return x.to(dtype) if x.is_floating_point() else x


def read_family(model: PreTrainedModel, answer: Answer) -> Reader:
    """`pooling: first`: the SequenceClassification class as its authors wrote it."""

    def read(batch: Batch) -> Answers:
        return answer(model(**batch.inputs).logits, batch)

    return read


def read_each(model: PreTrainedModel, answer: Answer) -> Reader:
    """The TokenClassification class as its authors wrote it, asked of the supervised tokens."""

    def read(batch: Batch) -> Answers:
        assert batch.positions is not None
        logits: Tensor = model(**batch.inputs).logits
        return answer(logits.flatten(0, 1).index_select(0, batch.positions), batch)

    return read


def read_spans(model: PreTrainedModel, answer: Answer) -> Reader:
    """The QuestionAnswering class as its authors wrote it, but that padding is no possible answer.

    Theirs takes the softmax over padded places too, so that a row's loss would depend on the rows beside it.
    """

    def read(batch: Batch) -> Answers:
        said = model(**batch.inputs)
        logits = torch.stack([said.start_logits, said.end_logits], 1)
        if batch.mask is not None:
            logits = logits.masked_fill(batch.mask[:, None] == 0, -math.inf)
        return answer(logits, batch)

    return read


# of models with a head of their own, by family
READERS = {"sequence": read_family, "tokens": read_each, "spans": read_spans}


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


def read_mean(encoder: PreTrainedModel, head: nn.Module, answer: Answer) -> Reader:
    """Mean pooling over the encoder's last states."""

    def read(batch: Batch) -> Answers:
        states = encoder(**batch.inputs).last_hidden_state
        return answer(head(states, batch.mask), batch)

    return read


def read_tokens(model: PreTrainedModel) -> Reader:
    """A language model with a plain linear head: losses of the supervised tokens, a few at a time."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]

    def read(batch: Batch) -> Answers:
        assert batch.positions is not None
        states: Tensor = model.base_model(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
        chosen = states.flatten(0, 1).index_select(0, batch.positions)
        return head_loss(chosen, head.weight, head.bias, batch.targets, batch.smoothing)

    return read


@contextmanager
def reading_logits(model: PreTrainedModel) -> Iterator[Reader]:
    """A language model that does more to its states or logits than a linear head (scaling, soft caps, LoRA on it).

    The states of supervised tokens are picked by a hook before the head, and the family's own code does the rest.
    """

    def read(batch: Batch) -> Answers:
        assert batch.positions is not None
        chosen[:] = [batch.positions]
        out: Tensor = model(input_ids=batch.ids, attention_mask=batch.mask).logits
        return replace(answers(out.squeeze(0), batch), logits=None)

    with picking(model) as chosen:
        yield read


@contextmanager
def picking(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The model's head sees only those states whose places, (targets,) in the flattened grid, stand in the list."""
    chosen: list[Tensor] = []

    def pick(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if current() is None:  # the model is used for something else
            return None
        states = arguments[0]  # (rows, tokens, hidden)
        return (states.flatten(0, 1).index_select(0, chosen[-1]).unsqueeze(0), *arguments[1:])

    head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    hook = head.register_forward_pre_hook(pick)
    try:
        yield chosen
    finally:
        hook.remove()


@torch.inference_mode()
def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether a language model's logits are its head's of the last states, and nothing else."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if type(head) is not nn.Linear:
        return False
    ids = torch.arange(5, device=model.device).unsqueeze(0)
    logits = model(input_ids=ids).logits
    own = head(model.base_model(input_ids=ids).last_hidden_state)
    return logits.shape == own.shape and torch.allclose(logits, own, rtol=1e-5, atol=1e-5 * float(own.abs().max()))


def head_std(model: PreTrainedModel) -> float:
    """Of the normal distribution that a head's weights are drawn from."""
    return float(getattr(model.config.get_text_config(), "initializer_range", None) or 0.02)


def fresh_heads(templates: Mapping[str, nn.Module], seed: int, std: float) -> dict[str, Tensor]:
    """prefix.parameter -> weights that a head begins with, from the unit's seed alone. templates: prefix -> module."""
    fresh: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):  # drawn on the CPU: equal on every device
        torch.manual_seed(derive_seed(seed, "head"))
        for prefix, template in sorted(templates.items()):
            initialise(template, std)
            fresh |= {f"{prefix}.{name}": p.detach().clone() for name, p in template.named_parameters()}
    return fresh


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
