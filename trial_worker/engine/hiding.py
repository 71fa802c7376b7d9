"""Token dropout: some of a training row's tokens are not shown to the model (Bowman et al. 2016, arXiv 1511.06349)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trial_worker.engine.dropout import salt, uniform
from trial_worker.tasks.interface import Item

_TOKENS = salt("tokens")


@dataclass(frozen=True, eq=False)
class Hidden:
    """token: what stands for a token that is not shown. spared: (tokens,) int64 that are always shown."""

    token: int
    spared: Tensor

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Hidden:
        """The tokenizer's mask token; else the unknown one, else the pad token."""
        named = (tokenizer.mask_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id)
        spared = torch.tensor(sorted(set(tokenizer.all_special_ids)), dtype=torch.int64)
        return cls(next((int(token) for token in named if token is not None), 0), spared)


def hide(item: Item, rate: float, key: Tensor, hidden: Hidden) -> Item:
    """The item without so many of its tokens; its targets stay. key: () int64, of its row at this step.

    The last token is always shown: a decoder's classifier finds its place by it, where pad and unknown are one token.
    """
    if not rate:
        return item
    at = torch.arange(item.length)
    drawn = uniform(key.expand(item.length), at, _TOKENS, 1).squeeze(1)
    gone = drawn < 2 * rate - 1
    gone[-1] = False
    gone &= ~torch.isin(item.ids, hidden.spared)
    return replace(item, ids=item.ids.masked_fill(gone, hidden.token))
