"""Dropout whose masks belong to (unit seed, step, row, layer, token, feature), not to a batch.

torch's dropout draws from one stream in the order of execution: the mask of a row would depend on its
neighbours and on the micro-batch, and running out of memory would change the numbers. Here a mask is a hash
of where it stands, so any grouping of rows sees the same one.

The base's own dropout (BERT's and GPT-2's 0.1) stays off, in training too: no setting of a study names it, and on 300
short texts (MiniLM, learning rate 2e-3, two folds, five epochs) it made no clear difference: 0.729 nats instead of
0.706 with mean pooling, 1.058 instead of 1.101 with the family's head.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

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


class Draws:
    """What the dropout layers of one unit share: the keys of the rows now being computed.

    keys: (rows,) int64; None switches dropout off.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.keys: Tensor | None = None

    def of(self, step: int, rows: Sequence[int], device: torch.device) -> Tensor:
        """Keys of these rows (snapshot row numbers) at this step of the unit."""
        start = mix(torch.tensor(self.seed, dtype=torch.int64)) + step
        return mix(mix(start) ^ torch.tensor(rows, dtype=torch.int64)).to(device)


class RowDropout(nn.Module):
    """Dropout with rate `p` on (rows, features) or (rows, tokens, features); the identity while keys are None.

    name: the layer's place in the model, so that no two layers share a mask.

    Raises:
        ValueError: the first dimension of an input is not the batch's rows.
    """

    def __init__(self, p: float, draws: Draws, name: str) -> None:
        super().__init__()
        self.p = p
        self.draws = draws
        self.salt = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)

    def forward(self, x: Tensor) -> Tensor:
        keys = self.draws.keys
        if keys is None or self.p == 0:
            return x
        if x.dim() not in (2, 3) or len(x) != len(keys):
            raise ValueError(f"dropout needs (rows, ..., features) with {len(keys)} rows, got {tuple(x.shape)}")
        tokens = torch.arange(x.shape[1] if x.dim() == 3 else 1, device=x.device)
        features = mix(torch.arange(1, x.shape[-1] + 1, device=x.device))
        places = mix(mix(keys ^ self.salt)[:, None] + tokens)
        bits = (places[..., None] ^ features) * _M1
        bits = ((bits ^ _shifted(bits, 32)) * _M2) >> 40  # 24 signed bits
        keep = (bits >= round(self.p * 2**24) - 2**23).view(x.shape)
        return x * keep / (1 - self.p)
