"""Attention over a stream: every token sees its own row only. Registered with transformers under `NAME`.

On a GPU one kernel of variable length takes all rows, elsewhere rows of like length are one dense batch.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from trial_worker.engine.blocks import Blocks, Places
from trial_worker.engine.stream import Stream, current

try:
    from torch.nn.attention import varlen
except ImportError:  # no release that is supported lacks it; a build may
    varlen = None  # type: ignore[assignment]

NAME = "foldtune_stream"
_UNKNOWN = ("softcap", "s_aux", "position_bias")  # what changes the scores themselves: the model keeps its own way


def register() -> None:
    """Make transformers know the function, and the mask that goes with it."""
    AttentionInterface.register(NAME, stream_attention)
    # Without a mask function of the same name transformers makes none for the grid either, and a model that is used
    # outside a micro-step would attend to padding without any error.
    AttentionMaskInterface.register(NAME, _mask)


def _mask(*arguments: Any, **named: Any) -> Any:
    return sdpa_mask(*arguments, **named) if current() is None else None


def stream_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **named: Any,
) -> tuple[Tensor, None]:
    """(1, tokens, heads, size) from query (1, heads, tokens, size), key and value (1, key heads, tokens, size).

    Raises:
        NotImplementedError: the family does more to its scores than this knows; `open_window` then leaves it alone.
    """
    stream = current()
    if stream is None:
        named["sliding_window"] = sliding_window
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **named
        )
        return out
    if odd := [name for name in _UNKNOWN if named.get(name) is not None]:
        raise NotImplementedError(f"attention with {odd[0]}")
    if dropout or query.shape[2] != stream.tokens:
        raise NotImplementedError("attention with dropout, or outside the stream")
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    compute = _by_kernel if query.is_cuda and query.dtype.itemsize == 2 and _VARIABLE else _by_blocks
    return compute(query, key, value, stream, scaling, causal, sliding_window), None


def _by_kernel(
    query: Tensor, key: Tensor, value: Tensor, stream: Stream, scale: float | None, causal: bool, reach: int | None
) -> Tensor:
    """All rows in one kernel of variable length (torch's flash attention)."""
    if key.shape[1] != query.shape[1]:
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    if scale is not None:  # the kernel's own is 1 / sqrt(size), which not every version lets one change
        query = query * (scale * query.shape[-1] ** 0.5)
    if reach is not None and stream.width > reach:
        edges = (reach - 1, 0) if causal else (reach, reach)
    else:
        edges = (-1, 0) if causal else (-1, -1)
    options: dict[str, Any] = {"window_size": edges} if "window_size" in _VARIABLE else {"is_causal": causal}
    if edges[0] >= 0 and "window_size" not in _VARIABLE:
        return _by_blocks(query, key, value, stream, query.shape[-1] ** -0.5, causal, reach)
    q, k, v = (t.squeeze(0).transpose(0, 1) for t in (query, key, value))
    out: Tensor = varlen.varlen_attn(q, k, v, stream.offsets, stream.offsets, stream.width, stream.width, **options)
    return out.unsqueeze(0)


def _by_blocks(
    query: Tensor, key: Tensor, value: Tensor, stream: Stream, scale: float | None, causal: bool, reach: int | None
) -> Tensor:
    """Rows of like length as one dense batch each (see `blocks`): any device, any precision."""
    out: Tensor = _Blocks.apply(query, key, value, stream.blocks, scale or query.shape[-1] ** -0.5, causal, reach)
    return out


class _Blocks(torch.autograd.Function):
    """softmax(scale q k^T) v of all blocks as one node of autograd's graph.

    With a node for every view of every block, keeping autograd's books takes as long as the attention. The scores'
    softmax is kept for the backward pass: short rows have few, and computing them anew costs a third of the whole.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        blocks: Blocks,
        scale: float,
        causal: bool,
        reach: int | None,
    ) -> Tensor:
        heads = query.shape[1]
        places = blocks.places(heads, key.shape[1])
        q, k, v = _padded(query, places.queries), _padded(key, places.keys), _padded(value, places.keys)
        out, kept = torch.empty_like(q), []
        for block, forbidden in zip(blocks.blocks, blocks.forbidden(causal, reach), strict=True):
            scores = _scaled(block.of(q, heads), block.of(k, heads).transpose(1, 2), scale)
            if forbidden is not None:
                scores.unflatten(0, (-1, heads)).masked_fill_(forbidden, float("-inf"))
            weights = torch.softmax(scores, -1)
            torch.bmm(weights, block.of(v, heads), out=block.of(out, heads))
            kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.blocks, ctx.places, ctx.scale, ctx.key_heads = blocks, places, scale, key.shape[1]
        return _emptied(out, places, heads)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        q, k, v, *kept = ctx.saved_tensors
        heads, places = gradient.shape[2], ctx.places
        onward = gradient.reshape(-1, gradient.shape[3]).index_select(0, places.queries)
        if places.padding is not None:
            onward.index_fill_(0, places.padding, 0)  # it repeats a real token's, which would count twice
        for_q, for_k, for_v = (torch.empty_like(q) for _ in range(3))
        for block, weights in zip(ctx.blocks.blocks, kept, strict=True):
            mine = block.of(onward, heads)
            torch.bmm(weights.transpose(1, 2), mine, out=block.of(for_v, heads))
            of_weights = torch.bmm(mine, block.of(v, heads).transpose(1, 2))
            scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            _scaled(scores, block.of(k, heads), ctx.scale, block.of(for_q, heads))
            _scaled(scores.transpose(1, 2), block.of(q, heads), ctx.scale, block.of(for_k, heads))
        found = [_emptied(part, places, heads) for part in (for_q, for_k, for_v)]
        if ctx.key_heads != heads:
            found[1:] = [part.unflatten(2, (ctx.key_heads, -1)).sum(3) for part in found[1:]]
        return *(part.transpose(1, 2) for part in found), None, None, None, None


_VARIABLE = frozenset(inspect.signature(varlen.varlen_attn).parameters) if varlen is not None else frozenset()


def _padded(tensor: Tensor, places: Tensor) -> Tensor:
    """(1, heads, tokens, size) -> (vectors, size), in blocks."""
    return tensor.transpose(1, 2).reshape(-1, tensor.shape[3]).index_select(0, places)


def _emptied(padded: Tensor, places: Places, heads: int) -> Tensor:
    """(vectors, size) -> (1, tokens, heads, size)."""
    return padded.index_select(0, places.back).view(1, -1, heads, padded.shape[1])


def _scaled(left: Tensor, right: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """scale * left right, batch by batch."""
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=scale, out=out)
