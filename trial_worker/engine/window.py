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
from trial_worker.engine.moves import put, take
from trial_worker.engine.narrow import narrow
from trial_worker.engine.stream import Stream, computing, current


@dataclass
class Window:
    """A model whose layers can see streams. close: the model is as it was.

    last: the last layer. narrow: whether it computes read tokens only, see `narrow`.
    """

    model: PreTrainedModel
    before: str
    last: nn.Module
    narrow: bool = False
    handles: list[RemovableHandle] = field(default_factory=list)

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.model.set_attn_implementation(self.before)


def pour(grid: Tensor, stream: Stream) -> Tensor:
    """(rows, width, features) -> (1, tokens, features)."""
    return take(grid.reshape(-1, grid.shape[-1]), stream.places).unsqueeze(0)


def spread(tokens: Tensor, stream: Stream) -> Tensor:
    """(1, tokens, features) -> (rows, width, features), zeros where there is no token; or of the read tokens alone."""
    places = stream.places if stream.flows(tokens.shape) else stream.places[stream.read_tokens]
    return put(tokens.squeeze(0), places, stream.rows * stream.width).view(stream.rows, stream.width, -1)


def open_window(model: PreTrainedModel) -> Window | None:
    """Make the model's layers see streams; None, and the model unchanged, where that would change its numbers."""
    layers = _layers(model)
    if layers is None or model.config.is_encoder_decoder:
        return None
    before = str(model.config._attn_implementation)
    register()
    with torch.inference_mode(), contextlib.suppress(Exception):  # whatever a family's code raises at a stream
        plain = _probe(model, None)
        window = Window(model, before, layers[-1])
        try:
            model.set_attn_implementation(NAME)
            window.handles += _hook(layers)
            if _agree(_probe(model, _stream(model)), plain, model.dtype):
                _narrow(window, plain)
                return window
        except Exception:
            window.close()
            raise
        window.close()
    return None


def _narrow(window: Window, plain: Tensor) -> None:
    """Spare the last layer what nothing reads, if the read tokens keep their states by it."""
    handles, read = narrow(window.last), torch.tensor([0, 3, 7, 12, 13])
    with contextlib.suppress(Exception):  # whatever a family's code raises at a part of its tokens
        states = _probe(window.model, _stream(window.model, read))
        window.narrow = bool(handles) and _agree(states[read], plain[read], window.model.dtype)
    if window.narrow:
        window.handles += handles
    else:
        for handle in handles:
            handle.remove()


def _agree(states: Tensor, plain: Tensor, dtype: torch.dtype) -> bool:
    noise = 4 * torch.finfo(dtype).eps if dtype.itemsize < 4 else 1e-3
    return torch.allclose(states, plain, rtol=noise, atol=noise * float(plain.abs().max()))


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


_LENGTHS = (7, 4, 4)


def _stream(model: PreTrainedModel, read: Tensor | None = None) -> Stream:
    return Stream(parts=((0, 1), (1, 2)), lengths=_LENGTHS, device=model.device, read=read)


def _probe(model: PreTrainedModel, stream: Stream | None) -> Tensor:
    """The last layer's states of three rows of unequal length, real tokens only."""
    config = model.config.get_text_config()
    ids = (torch.arange(21, device=model.device).view(3, 7) * 7 + 5) % int(config.vocab_size)
    mask = (torch.arange(7)[None] < torch.tensor(_LENGTHS)[:, None]).long().to(model.device)
    options: Mapping[str, Any] = {"input_ids": ids, "attention_mask": mask}
    with contextlib.nullcontext() if stream is None else computing(stream):
        states: Tensor = model.base_model(**options).last_hidden_state
    return states.flatten(0, 1)[_stream(model).places].float()
