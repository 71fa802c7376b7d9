"""What tasks have in common: one target for a text or a pair of texts, or the tokens of a text as targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trial_worker.tasks.interface import Item, Row, Scores, Task


class OneTarget(Task):
    """Rows `{"text": str}`, with `text_pair` the two of a pair, and a target of the task's own form."""

    def target(self, row: Row) -> Tensor:
        """(1, ...), what is to be said of the row.

        Raises:
            ValueError: the row has none that fits the task.
        """
        raise NotImplementedError

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[Item]:
        """Items with one target each.

        Raises:
            ValueError: a row lacks a text, or its target does not fit.
        """
        targets = []
        for number, row in enumerate(rows):
            for name in ("text", "text_pair"):
                if not isinstance(row.get(name, ""), str) or (name not in row and name == "text"):
                    raise ValueError(f"row {number}: {name} must be a string, got {row.get(name)!r}")
            try:
                targets.append(self.target(row))
            except ValueError as error:
                raise ValueError(f"row {number}: {error}") from error
        if not rows:
            return []
        pairs = [row["text_pair"] for row in rows if "text_pair" in row] or None
        if pairs is not None and len(pairs) < len(rows):
            raise ValueError("either all rows have a text_pair, or none has one")
        items = items_of(tokenizer([row["text"] for row in rows], pairs), targets)
        for number, item in enumerate(items):
            if not item.length:
                raise ValueError(f"row {number}: the text has no tokens")
        return items

    def shorten(self, item: Item, row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Item:
        """Cut by the tokenizer, which keeps the closing special token that many heads read; of a pair the longer."""
        pair = [row["text_pair"]] if "text_pair" in row else None
        coded = tokenizer([row["text"]], pair, truncation=True, max_length=max_length)
        (cut,) = items_of(coded, [item.targets])
        return replace(item, ids=cut.ids, segments=cut.segments)


def items_of(coded: Any, targets: Sequence[Tensor]) -> list[Item]:
    """Items of what a tokenizer made of several rows."""
    kinds = coded.get("token_type_ids") or [None] * len(targets)
    return [
        Item(
            ids=torch.tensor(ids, dtype=torch.int64),
            targets=target,
            segments=torch.tensor(kind, dtype=torch.int64) if kind and any(kind) else None,
        )
        for ids, kind, target in zip(coded["input_ids"], kinds, targets, strict=True)
    ]


def language_tallies(items: Sequence[Item], scores: Scores) -> dict[str, Any]:
    """nats, items (supervised tokens), correct, rows, and bytes of supervised text."""
    return {
        "nats": float(scores.nats.sum()),
        "items": int(scores.counts.sum()),
        "correct": int(scores.correct.sum()),
        "rows": len(items),
        "bytes": sum(item.size for item in items),
    }
