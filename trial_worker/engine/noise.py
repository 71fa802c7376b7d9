"""Noise of training inside the frozen model: dropout where its authors put one, and on the embeddings (NEFTune).

Like LoRA's own dropout it belongs to a row, a step and a place, see `dropout`; each slot has its own amount.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from orchestrator.contract import Settings
from trial_worker.engine.dropout import mask, salt, uniform
from trial_worker.engine.stream import Stream, current

_EMBEDDINGS = salt("embeddings")


class SlotDropout(nn.Module):
    """Takes the place of a model's own nn.Dropout while units train.

    slots: the settings of the units, by their slots.
    """

    def __init__(self, name: str, slots: Mapping[int, Settings]) -> None:
        super().__init__()
        self.salt = salt(name)
        self.slots = slots

    def forward(self, x: Tensor) -> Tensor:
        stream = current()
        # attention's own has four dimensions, and stays off
        if stream is None or stream.keys is None or x.dim() > 3:
            return x
        bounds = stream.bounds(x.shape)
        rates = [self.slots[bound.slot].dropout for bound in bounds]
        if not any(rates):
            return x
        rows, positions = stream.spots(x.shape)
        keys, features = stream.keys[rows], x.shape[-1]
        left = []
        for bound, rate in zip(bounds, rates, strict=True):
            own = slice(bound.start, bound.end)
            if rate:
                left.append(mask(keys[own], positions[own], self.salt, features, rate).to(x.dtype) / (1 - rate))
            else:
                left.append(x.new_ones(bound.end - bound.start, features))
        return x * torch.cat(left).view(x.shape)


@contextmanager
def noise_in_place(model: PreTrainedModel, slots: Mapping[int, Settings]) -> Iterator[None]:
    """The model with noise as its slots' settings say."""
    before = {name: part for name, part in model.named_modules() if type(part) is nn.Dropout}
    embeddings: nn.Module = model.get_input_embeddings()  # type: ignore[no-untyped-call]

    def disturb(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor | None:
        stream = current()
        return None if stream is None or stream.keys is None else _disturbed(output, stream, slots)

    hook = embeddings.register_forward_hook(disturb)
    try:
        for name in before:
            model.set_submodule(name, SlotDropout(name, slots))
        yield
    finally:
        hook.remove()
        for name, part in before.items():
            model.set_submodule(name, part)


def _disturbed(embedded: Tensor, stream: Stream, slots: Mapping[int, Settings]) -> Tensor | None:
    """NEFTune (Jain et al. 2023, arXiv 2310.05914): uniform noise of size alpha / sqrt(tokens x features)."""
    alphas = [slots[bound.slot].neftune_alpha for bound in stream.row_bounds for _ in range(bound.start, bound.end)]
    if not any(alphas) or stream.keys is None:
        return None
    features = embedded.shape[-1]
    lengths = torch.tensor(stream.lengths, dtype=torch.float32)
    sizes = (torch.tensor(alphas) / (lengths * features).sqrt()).to(embedded.device)
    rows, positions = stream.spots(embedded.shape)
    drawn = uniform(stream.keys[rows], positions, _EMBEDDINGS, features) * sizes[rows, None]
    return embedded + drawn.to(embedded.dtype).view(embedded.shape)
