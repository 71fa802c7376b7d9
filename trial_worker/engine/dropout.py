"""Dropout whose masks belong to (unit seed, step, row, layer, token, feature), not to a batch.

torch's dropout draws from one stream in the order of execution: the mask of a row would depend on its
neighbours and on the micro-batch, and running out of memory would change the numbers. Here a mask is a hash
of where it stands, so any grouping of rows sees the same one.

The base's own dropout (BERT's and GPT-2's 0.1) is off unless a study's `dropout` says otherwise: on 300 short texts
(MiniLM, learning rate 2e-3, two folds, five epochs) it made no clear difference: 0.729 nats instead of 0.706 with mean
pooling, 1.058 instead of 1.101 with the family's head.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

_M1 = -0x40A7B892E31B1A47  # splitmix64's multipliers as signed 64-bit numbers
_M2 = -0x6B2FB644ECCEEE15


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift right; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64, wrapping around; any shape."""
    x = (x ^ _shifted(x, 30)) * _M1
    x = (x ^ _shifted(x, 27)) * _M2
    return x ^ _shifted(x, 31)


def row_keys(seed: int, step: int, rows: Sequence[int], copies: Sequence[int] | None = None) -> Tensor:
    """(rows,) int64: what the masks of these rows (snapshot row numbers) at this step of a unit are drawn from.

    copies: a row that is computed twice in a step has another mask in its copy 1 than in its copy 0.
    """
    start = mix(torch.tensor(seed, dtype=torch.int64)) + step
    keys = mix(mix(start) ^ torch.tensor(rows, dtype=torch.int64))
    if copies is None or not any(copies):
        return keys
    copy = torch.tensor(copies, dtype=torch.int64)
    return torch.where(copy == 0, keys, mix(keys + copy))


def salt(name: str) -> int:
    """A layer's own number, so that no two layers share a mask."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def mask(keys: Tensor, positions: Tensor, layer: int, features: int, rate: float) -> Tensor:
    """(vectors, features) bool, what dropout keeps; one is dropped with probability `rate`.

    keys: (vectors,) int64, of each vector's row. positions: (vectors,) int64, its place there. layer: its `salt`.
    """
    return _bits(keys, positions, layer, features) >= round(rate * 2**24) - 2**23


def uniform(keys: Tensor, positions: Tensor, layer: int, features: int) -> Tensor:
    """(vectors, features) float32 in [-1, 1), drawn as `mask` is."""
    return _bits(keys, positions, layer, features).float() / 2**23


def _bits(keys: Tensor, positions: Tensor, layer: int, features: int) -> Tensor:
    """(vectors, features) int64 of 24 signed bits."""
    columns = mix(torch.arange(1, features + 1, device=keys.device))
    places = mix(mix(keys ^ layer) + positions)
    bits = (places[:, None] ^ columns) * _M1
    return ((bits ^ _shifted(bits, 32)) * _M2) >> 40
