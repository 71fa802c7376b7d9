"""Sort texts into classes: rows `{"text": str, "label": str}`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from trial_worker.tasks.interface import Item, Row, Scores

BINS = 15  # equal-width bins of confidence, for the expected calibration error


class Classification:
    """Single-label classification; the loss is nats per row."""

    family = "sequence"

    def __init__(self, labels: Sequence[str]) -> None:
        if len(labels) < 2:
            raise ValueError(f"classification needs at least 2 labels, got {len(labels)}")
        self.labels = tuple(labels)

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[Item]:
        """Items with one target each.

        Raises:
            ValueError: a row lacks a text or its label is not one of the study's.
        """
        index = {label: number for number, label in enumerate(self.labels)}
        for number, row in enumerate(rows):
            if not isinstance(row.get("text"), str):
                raise ValueError(f"row {number}: text must be a string, got {row.get('text')!r}")
            if row.get("label") not in index:
                raise ValueError(f"row {number}: label {row.get('label')!r} is not one of the study's labels")
        if not rows:
            return []
        ids = tokenizer([row["text"] for row in rows])["input_ids"]
        for number, one in enumerate(ids):
            if not one:
                raise ValueError(f"row {number}: the text has no tokens")
        return [
            Item(ids=torch.tensor(one, dtype=torch.int64), targets=torch.tensor([index[row["label"]]]))
            for one, row in zip(ids, rows, strict=True)
        ]

    def shorten(self, item: Item, row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Item:
        """Cut by the tokenizer, which keeps the closing special token that many heads read."""
        ids = tokenizer(row["text"], truncation=True, max_length=max_length)["input_ids"]
        return Item(ids=torch.tensor(ids, dtype=torch.int64), targets=item.targets)

    def tallies(self, items: Sequence[Item], scores: Scores) -> dict[str, Any]:
        """nats, items, correct, per-class tp / fp / fn, and 15 bins of [n, confidence sum, correct]."""
        if scores.logits is None:
            raise ValueError("classification tallies need logits")
        classes = len(self.labels)
        truth = np.array([int(item.targets[0]) for item in items])
        probabilities = _softmax(scores.logits.astype(np.float64))
        said = scores.logits.argmax(-1)
        hit = said == truth
        confidence = probabilities[np.arange(len(said)), said]
        where = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        return {
            "nats": float(scores.nats.sum()),
            "items": len(items),
            "correct": int(hit.sum()),
            "tp": np.bincount(truth[hit], minlength=classes).tolist(),
            "fp": np.bincount(said[~hit], minlength=classes).tolist(),
            "fn": np.bincount(truth[~hit], minlength=classes).tolist(),
            "bins": [
                [int((where == b).sum()), float(confidence[where == b].sum()), int(hit[where == b].sum())]
                for b in range(BINS)
            ],
        }


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))
