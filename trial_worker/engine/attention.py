"""Attention over a stream: every token sees its own row only. Registered with transformers under `NAME`.

Rows of equal length are one dense batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from trial_worker.engine.stream import Run, Stream, current

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
    compute = _by_kernel if query.is_cuda and query.dtype.itemsize == 2 and _VARIABLE else _by_runs
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
        return _by_runs(query, key, value, stream, query.shape[-1] ** -0.5, causal, reach)
    q, k, v = (t.squeeze(0).transpose(0, 1) for t in (query, key, value))
    out: Tensor = varlen.varlen_attn(q, k, v, stream.offsets, stream.offsets, stream.width, stream.width, **options)
    return out.unsqueeze(0)


def _by_runs(
    query: Tensor, key: Tensor, value: Tensor, stream: Stream, scale: float | None, causal: bool, reach: int | None
) -> Tensor:
    """Rows of equal length as one dense batch each: (1, tokens, heads, size)."""
    near = reach is not None and stream.width > reach
    if query.device.type == "cpu" and not near and key.shape == query.shape == value.shape:
        whole: Tensor = _Runs.apply(query, key, value, stream.runs, scale, causal)
        return whole
    sizes = [run.rows * run.length for run in stream.runs]
    # one split, whose backward is one concatenation: a slice each would give each a full-sized zero gradient
    parts = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), stream.runs, strict=True)
    outputs = []
    for q, k, v, run in parts:
        mask = _band(run.length, reach, causal, query.device) if reach is not None and run.length > reach else None
        out = scaled_dot_product_attention(
            _dense(q, run),
            _dense(k, run),
            _dense(v, run),
            attn_mask=mask,
            is_causal=causal and mask is None and run.length > 1,
            scale=scale,
            enable_gqa=k.shape[1] != q.shape[1],
        )
        outputs.append(out.transpose(1, 2).reshape(1, run.rows * run.length, q.shape[1], -1))
    return torch.cat(outputs, dim=1)


class _Runs(torch.autograd.Function):
    """Attention of all runs as one node of autograd's graph.

    With a node for every view of every run, a layer over sixteen short rows has two hundred of them, and keeping the
    books takes as long as the attention.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, runs: Sequence[Run], scale: float | None, causal: bool
    ) -> Tensor:
        q, k, v = (tensor.transpose(1, 2).contiguous() for tensor in (query, key, value))
        parts, sums = zip(
            *(_FORWARD(*(_rows(t, run) for t in (q, k, v)), 0.0, causal, scale=scale) for run in runs), strict=True
        )
        out = _joined(parts)
        ctx.save_for_backward(q, k, v, out, *sums)
        ctx.runs, ctx.scale, ctx.causal = runs, scale, causal
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        q, k, v, out, *sums = ctx.saved_tensors
        gradient = gradient.contiguous()
        parts = [
            _BACKWARD(*(_rows(t, run) for t in (gradient, q, k, v, out)), total, 0.0, ctx.causal, scale=ctx.scale)
            for run, total in zip(ctx.runs, sums, strict=True)
        ]
        return *(_joined(each).transpose(1, 2) for each in zip(*parts, strict=True)), None, None, None


_VARIABLE = frozenset(inspect.signature(varlen.varlen_attn).parameters) if varlen is not None else frozenset()
_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _rows(tensor: Tensor, run: Run) -> Tensor:
    """(1, tokens, heads, size), contiguous -> (rows, heads, length, size), a view."""
    heads, size = tensor.shape[2:]
    each = heads * size
    return tensor.as_strided(
        (run.rows, heads, run.length, size),
        (run.length * each, size, each, 1),
        tensor.storage_offset() + run.start * each,
    )


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """(rows, heads, length, size) of every run -> (1, tokens, heads, size), contiguous."""
    return torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts]).unsqueeze(0)


def _dense(tensor: Tensor, run: Run) -> Tensor:
    """(1, heads, rows * length, size) -> (rows, heads, length, size), a view."""
    return tensor.squeeze(0).unflatten(1, (run.rows, run.length)).transpose(0, 1)


def _band(length: int, reach: int, causal: bool, device: torch.device) -> Tensor:
    """(length, length) bool: what is seen within a sliding window."""
    apart = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None]
    return (apart >= 0) & (apart < reach) if causal else apart.abs() <= reach
