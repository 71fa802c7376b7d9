"""Vectors copied between a micro-step's forms, each to a place of its own, there and back for their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, places: Tensor) -> Tensor:
        ctx.places, ctx.size = places, len(source)
        return source.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _placed(gradient, ctx.places, ctx.size), None


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, places: Tensor, size: int) -> Tensor:
        ctx.places = places
        return _placed(vectors, places, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return gradient.index_select(0, ctx.places), None, None


def _placed(vectors: Tensor, places: Tensor, size: int) -> Tensor:
    # each place is written once, so that an order of additions cannot change a bit
    return vectors.new_zeros(size, vectors.shape[-1]).index_copy_(0, places, vectors)


def take(source: Tensor, places: Tensor) -> Tensor:
    """(vectors, features) -> (places, features): those that stand there. No place may be named twice."""
    taken: Tensor = _Take.apply(source, places)
    return taken


def put(vectors: Tensor, places: Tensor, size: int) -> Tensor:
    """(places, features) -> (size, features): the vectors at their places, zeros elsewhere."""
    whole: Tensor = _Put.apply(vectors, places, size)
    return whole
