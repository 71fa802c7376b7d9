"""From a text to another: rows `{"source": str, "target": str}`, for models with an encoder and a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from trial_worker.tasks.interface import Item, Row, Scores, Task, Wanted
from trial_worker.tasks.texts import language_tallies


class Seq2Seq(Task):
    """The decoder's next token; the loss is nats per token of the target, its closing token included."""

    family = "seq2seq"

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[Item]:
        """Items with a target for each token of the target.

        Raises:
            ValueError: a row lacks a text, or the tokenizer cannot say which characters a token covers.
        """
        if not tokenizer.is_fast:
            raise ValueError("the tokenizer gives no character offsets; a tokenizer.json is needed")
        items = []
        for number, row in enumerate(rows):
            for name in ("source", "target"):
                if not isinstance(row.get(name), str):
                    raise ValueError(f"row {number}: {name} must be a string, got {row.get(name)!r}")
            ids = tokenizer(row["source"], verbose=False)["input_ids"]
            if not ids:
                raise ValueError(f"row {number}: the source has no tokens")
            items.append(_item(ids, row["target"], tokenizer))
        return items

    def shorten(self, item: Item, row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Item:
        """Source and target may each have so many tokens. What is cut of a target is not counted, nor are its bytes."""
        assert item.ends is not None
        ids = tokenizer(row["source"], truncation=True, max_length=max_length)["input_ids"]
        ends = item.ends[:max_length]
        return replace(item, ids=torch.tensor(ids), targets=item.targets[:max_length], ends=ends, size=int(ends.max()))

    def tallies(self, items: Sequence[Item], scores: Scores) -> dict[str, Any]:
        """As of any language model."""
        return language_tallies(items, scores)


def _item(ids: Sequence[int], target: str, tokenizer: PreTrainedTokenizerBase) -> Item:
    coded = tokenizer(text_target=target, return_offsets_mapping=True, verbose=False)
    targets, ends = list(coded["input_ids"]), [end for _, end in coded["offset_mapping"]]
    if tokenizer.eos_token_id is not None and targets[-1:] != [tokenizer.eos_token_id]:
        targets, ends = [*targets, tokenizer.eos_token_id], [*ends, 0]
    ends[-1] = len(target)  # the closing token stands behind everything
    covered = [len(target[:end].encode()) for end in accumulate(ends, max)]
    return Item(
        ids=torch.tensor(ids, dtype=torch.int64),
        targets=torch.tensor(targets, dtype=torch.int64),
        size=covered[-1],
        ends=torch.tensor(covered, dtype=torch.int64),
        gold=Wanted(target, len(ids), tokenizer.eos_token_id),
        decoded=True,
    )
