"""A tag for each word: rows `{"text": str, "words": [[start, end]], "tags": [str]}`, words by their characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from orchestrator.forms import are_bio
from trial_worker.tasks.entities import entities
from trial_worker.tasks.interface import Answers, Batch, Item, Row, Scores, Task, score


class TokenClassification(Task):
    """The first token of each word says its tag; the loss is nats per word. Words that were cut off are not counted."""

    family = "tokens"

    def __init__(self, labels: Sequence[str]) -> None:
        if len(labels) < 2:
            raise ValueError(f"token_classification needs at least 2 tags, got {len(labels)}")
        self.labels = tuple(labels)
        self._numbers = {label: number for number, label in enumerate(labels)}
        self._bio = are_bio(labels)

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[Item]:
        """Items with a target for each word.

        Raises:
            ValueError: a row has no words, a tag is not one of the study's, or the tokenizer does not say which
                characters a token covers.
        """
        if not tokenizer.is_fast:
            raise ValueError("the tokenizer gives no character offsets; a tokenizer.json is needed")
        items = []
        for number, row in enumerate(rows):
            words, tags = row.get("words"), row.get("tags")
            if not isinstance(row.get("text"), str) or not words or not tags or len(words) != len(tags):
                raise ValueError(f"row {number}: text, words and as many tags are needed")
            unknown = set(tags) - set(self.labels)
            if unknown:
                raise ValueError(f"row {number}: tag {min(unknown)!r} is not one of the study's")
            items.append(self._item(row, tokenizer(row["text"], return_offsets_mapping=True, verbose=False)))
        return items

    def shorten(self, item: Item, row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Item:
        """Cut by the tokenizer, which keeps the closing special token."""
        coded = tokenizer(row["text"], truncation=True, max_length=max_length, return_offsets_mapping=True)
        return self._item(row, coded)

    def _item(self, row: Row, coded: Any) -> Item:
        positions, targets = [], []
        tokens = [(place, *span) for place, span in enumerate(coded["offset_mapping"]) if span[0] < span[1]]
        next_token = 0
        for (start, end), tag in zip(row["words"], row["tags"], strict=True):
            while next_token < len(tokens) and tokens[next_token][2] <= start:
                next_token += 1
            if next_token < len(tokens) and tokens[next_token][1] < end:
                positions.append(tokens[next_token][0])
                targets.append(self._numbers[tag])
                next_token += 1
        return Item(
            ids=torch.tensor(coded["input_ids"], dtype=torch.int64),
            targets=torch.tensor(targets, dtype=torch.int64),
            positions=torch.tensor(positions, dtype=torch.int64),
        )

    def score(self, said: Answers, batch: Batch) -> Scores:
        """outputs: the most likely tag of each word."""
        assert said.logits is not None
        best = said.logits.argmax(-1).cpu().numpy()
        borders = torch.bincount(batch.owners, minlength=batch.rows).cumsum(0)[:-1].cpu().numpy()
        return replace(score(replace(said, logits=None), batch), outputs=tuple(np.split(best, borders)))

    def tallies(self, items: Sequence[Item], scores: Scores) -> dict[str, Any]:
        """nats, items (words), correct, rows, and entities [tp, fp, fn], all 0 where tags are not of the BIO scheme."""
        assert scores.outputs is not None
        found = [0, 0, 0]
        for item, best in zip(items, scores.outputs, strict=True) if self._bio else ():
            truth, said = (set(entities([self.labels[tag] for tag in tags])) for tags in (item.targets.tolist(), best))
            own = (len(said & truth), len(said - truth), len(truth - said))
            found = [a + b for a, b in zip(found, own, strict=True)]
        return {
            "nats": float(scores.nats.sum()),
            "items": int(scores.counts.sum()),
            "correct": int(scores.correct.sum()),
            "rows": len(items),
            "entities": found,
        }
