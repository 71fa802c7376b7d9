"""Behind the last layer's attention only those tokens are computed that anything reads afterwards.

A classifier reads one token of each row, a language model its supervised ones. The others are needed as keys and values
alone: where one token in 23 is read, a model of six layers is spared an eighth of its products.

In layers as BERT's all that follows attention hands on what it is given, so that the layer's output has the read tokens
only. Others add the feed-forward part's output to what stood before it, so that it is put back among zeros.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from trial_worker.engine.moves import put, take
from trial_worker.engine.stream import current

Reads = Literal["all", "first", "last", "targets"]
_FEED_FORWARD = ("mlp", "feed_forward", "ffn")


def narrow(layer: nn.Module) -> list[RemovableHandle]:
    """Have the model's last layer compute a stream's read tokens only; no hooks where nothing is known of its parts."""
    attention = getattr(layer, "attention", None)
    if isinstance(behind := getattr(attention, "output", None), nn.Module):
        return [behind.register_forward_pre_hook(_pick, with_kwargs=True)]
    for name in _FEED_FORWARD:
        if isinstance(part := getattr(layer, name, None), nn.Module):
            return [part.register_forward_pre_hook(_pick, with_kwargs=True), part.register_forward_hook(_put_back)]
    return []


def _pick(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any] | None:
    stream = current()
    if stream is None or stream.read is None:
        return None

    def picked(value: Any) -> Any:
        flows = isinstance(value, Tensor) and stream.flows(value.shape)
        return take(value.squeeze(0), stream.read_tokens).unsqueeze(0) if flows else value

    return tuple(picked(value) for value in arguments), {name: picked(value) for name, value in named.items()}


def _put_back(_: nn.Module, __: tuple[Any, ...], output: Any) -> Tensor | None:
    stream = current()
    if stream is None or stream.read is None:
        return None
    return put(output.squeeze(0), stream.read_tokens, stream.tokens).unsqueeze(0)


def reads_of_head(model: PreTrainedModel, last: nn.Module, family: str = "sequence") -> Reads:
    """Which of each row's tokens a head's logits depend on, by their gradients at the last layer's output.

    family: as `Base.family`. Of a head that says something of each token: whether it is that token alone.
    """
    if family == "spans":  # all tokens of a row are compared
        return "all"
    seen: list[Tensor] = []

    def watch(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        seen.append(states.detach().requires_grad_())
        return (seen[-1], *output[1:]) if isinstance(output, tuple) else seen[-1]

    lengths = torch.tensor([7, 4, 5])
    at = torch.arange(7)
    mask = (at < lengths[:, None]).long().to(model.device)
    config = model.config.get_text_config()
    pad, most = int(config.pad_token_id or 0), int(config.vocab_size)
    ids = (torch.arange(21, device=model.device).view(3, 7) * 7 + 5) % most
    ids = torch.where(ids == pad, (pad + 1) % most, ids).masked_fill(mask == 0, pad)
    handle = last.register_forward_hook(watch)
    try:
        with torch.enable_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits.float()
            torch.autograd.backward((logits[:, 2] if family == "tokens" else logits).sum())
    finally:
        handle.remove()
    slopes = seen[-1].grad
    read = torch.zeros_like(mask, dtype=torch.bool) if slopes is None else slopes.abs().sum(-1) > 0
    found = read.cpu()
    if family == "tokens":
        return "targets" if bool((found == (at == 2)).all()) else "all"
    if bool((found == (at == 0)).all()):
        return "first"
    if bool((found == (at == lengths[:, None] - 1)).all()):
        return "last"
    return "all"
