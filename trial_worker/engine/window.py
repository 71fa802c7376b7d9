"""Between a model's first and last layer a micro-step is a stream of tokens; outside it is a padded grid.

Hooks on the layers turn one into the other, and attention is a function of our own (see `attention`). Nothing is
assumed of a family but that it has a list of layers which hand on (rows, tokens, features): `open_window` tries it on
three rows and keeps the model as it was where the result differs. T5, whose position bias needs the grid, keeps it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from trial_worker.engine.attention import NAME, register
from trial_worker.engine.stream import Stream, computing, current


@dataclass
class Window:
    """A model whose layers can see streams. close: the model is as it was."""

    model: PreTrainedModel
    before: str
    handles: list[RemovableHandle] = field(default_factory=list)

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.model.set_attn_implementation(self.before)


class _Pour(torch.autograd.Function):
    """Grid to stream: (rows * width, features) -> (tokens, features). Padding has no gradient."""

    @staticmethod
    def forward(ctx: Any, grid: Tensor, stream: Stream) -> Tensor:
        ctx.stream, ctx.size = stream, len(grid)
        return grid.index_select(0, stream.places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _spread(gradient, ctx.stream, ctx.size), None


class _Spread(torch.autograd.Function):
    """Stream to grid: (tokens, features) -> (rows * width, features), zeros where there is no token."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, stream: Stream) -> Tensor:
        ctx.stream = stream
        return _spread(tokens, stream, stream.rows * stream.width)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient.index_select(0, ctx.stream.places), None


def _spread(tokens: Tensor, stream: Stream, size: int) -> Tensor:
    grid = tokens.new_zeros(size, tokens.shape[-1])
    # each place is written once, so that an order of additions cannot change a bit
    return grid.index_copy_(0, stream.places, tokens)


def pour(grid: Tensor, stream: Stream) -> Tensor:
    """(rows, width, features) -> (1, tokens, features)."""
    out: Tensor = _Pour.apply(grid.reshape(-1, grid.shape[-1]), stream)
    return out.unsqueeze(0)


def spread(tokens: Tensor, stream: Stream) -> Tensor:
    """(1, tokens, features) -> (rows, width, features)."""
    out: Tensor = _Spread.apply(tokens.squeeze(0), stream)
    return out.view(stream.rows, stream.width, -1)


def open_window(model: PreTrainedModel) -> Window | None:
    """Make the model's layers see streams; None, and the model unchanged, where that would change its numbers."""
    layers = _layers(model)
    if layers is None or model.config.is_encoder_decoder:
        return None
    before = str(model.config._attn_implementation)
    register()
    with torch.inference_mode(), contextlib.suppress(Exception):  # whatever a family's code raises at a stream
        plain = _probe(model, streamed=False)
        window = Window(model, before)
        try:
            model.set_attn_implementation(NAME)
            window.handles += _hook(layers)
            noise = 4 * torch.finfo(model.dtype).eps if model.dtype.itemsize < 4 else 1e-3
            if torch.allclose(_probe(model, streamed=True), plain, rtol=noise, atol=noise * float(plain.abs().max())):
                return window
        except Exception:
            window.close()
            raise
        window.close()
    return None


def _layers(model: PreTrainedModel) -> nn.ModuleList | None:
    """The list of modules of one class that holds most of the weights."""
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len({type(p) for p in part}) == 1]
    return max(lists, key=lambda part: sum(p.numel() for p in part.parameters()), default=None)


def _hook(layers: nn.ModuleList) -> list[RemovableHandle]:
    handles = []
    for number, layer in enumerate(layers):
        enter = _enter_first if number == 0 else _enter
        handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
    handles.append(layers[-1].register_forward_hook(_leave))
    return handles


def _enter_first(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any] | None:
    stream = current()
    if stream is None:
        return None
    states = arguments[0] if arguments else named["hidden_states"]
    poured = pour(states, stream)
    if arguments:
        arguments = (poured, *arguments[1:])
    else:
        named = {**named, "hidden_states": poured}
    return _enter(_, arguments, named)


def _enter(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any] | None:
    """What else layers are given for each place of the grid, as rotary angles."""
    stream = current()
    if stream is None:
        return None
    return arguments, {name: _poured(value, stream) for name, value in named.items()}


def _poured(value: Any, stream: Stream) -> Any:
    if isinstance(value, tuple):
        return tuple(_poured(part, stream) for part in value)
    if not isinstance(value, Tensor) or value.dim() not in (2, 3) or value.shape[1] != stream.width:
        return value
    if value.shape[0] == 1:  # the same for every row
        return value[:, stream.token_positions]
    if value.shape[0] == stream.rows:
        return value.flatten(0, 1)[stream.places].unsqueeze(0)
    return value


def _leave(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
    stream = current()
    if stream is None:
        return None
    if isinstance(output, tuple):
        return (spread(output[0], stream), *output[1:])
    return spread(output, stream)


def _probe(model: PreTrainedModel, *, streamed: bool) -> Tensor:
    """The last layer's states of three rows of unequal length, real tokens only."""
    lengths = (7, 4, 4)
    config = model.config.get_text_config()
    ids = (torch.arange(21, device=model.device).view(3, 7) * 7 + 5) % int(config.vocab_size)
    mask = (torch.arange(7)[None] < torch.tensor(lengths)[:, None]).long().to(model.device)
    stream = Stream(parts=((0, 1), (1, 2)), lengths=lengths, device=model.device)
    options: Mapping[str, Any] = {"input_ids": ids, "attention_mask": mask}
    with computing(stream) if streamed else contextlib.nullcontext():
        states: Tensor = model.base_model(**options).last_hidden_state
    return states.flatten(0, 1)[stream.places].float()
