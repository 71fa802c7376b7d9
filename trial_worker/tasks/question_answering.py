"""Where in a text the answer to a question stands: rows `{"context", "question", "answer": str, "start": int}`."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trial_worker.tasks.interface import Answers, Batch, Item, Row, Scores, Task, score
from trial_worker.tasks.texts import items_of

LONGEST = 30  # tokens of an answer, as in the reference evaluation of SQuAD models


@dataclass(frozen=True, slots=True)
class Gold:
    """answer: to be found. context: the text. first: the item's first token of it. spans: characters of its tokens."""

    answer: str
    context: str
    first: int
    spans: tuple[tuple[int, int], ...]


class QuestionAnswering(Task):
    """The answer's first and last token, each among all tokens of the row; the loss is nats per end, two ends a row.

    A row whose answer was cut off has no loss, and still counts as answered wrongly.
    """

    family = "spans"
    outputs = 2

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[Item]:
        """Items with two targets each.

        Raises:
            ValueError: a row lacks a part, its answer does not stand where it says, or the tokenizer cannot say which
                characters a token covers.
        """
        if not tokenizer.is_fast:
            raise ValueError("the tokenizer gives no character offsets; a tokenizer.json is needed")
        items = []
        for number, row in enumerate(rows):
            if not all(isinstance(row.get(name), str) for name in ("context", "question", "answer")):
                raise ValueError(f"row {number}: context, question and answer must be strings")
            if not row["context"].startswith(row["answer"], row["start"]):
                raise ValueError(f"row {number}: the answer does not stand at character {row['start']}")
            items.append(_item(row, tokenizer, {"verbose": False}))
            if not items[-1].weight:
                raise ValueError(f"row {number}: the answer has no tokens")
        return items

    def shorten(self, item: Item, row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Item:
        """Cut by the tokenizer, the longer of question and context at its end."""
        return _item(row, tokenizer, {"truncation": True, "max_length": max_length})

    def answer(self, outputs: Tensor, batch: Batch) -> Answers:
        """Of logits (rows, 2, length), minus infinity where no token is. Targets are smoothed over real tokens."""
        wide = outputs if outputs.dtype == torch.float64 else outputs.float()
        end = torch.arange(len(batch.targets), device=wide.device) % 2
        chosen = wide[batch.owners, end]
        likely = chosen.log_softmax(-1)
        nats = -likely.gather(1, batch.targets[:, None]).squeeze(1).double()
        smoothed = None
        if batch.smoothing is not None:
            real = chosen.isfinite()
            spread = -likely.masked_fill(~real, 0.0).sum(-1) / real.sum(-1)
            smoothed = torch.lerp(nats, spread.double(), batch.smoothing.double())
        return Answers(nats, chosen.argmax(-1) == batch.targets, wide, smoothed)

    def score(self, said: Answers, batch: Batch) -> Scores:
        """outputs: logits (2, length) of each row."""
        assert said.logits is not None
        outputs = tuple(said.logits.float().cpu().numpy())
        return replace(score(replace(said, logits=None), batch), outputs=outputs)

    def tallies(self, items: Sequence[Item], scores: Scores) -> dict[str, Any]:
        """nats, items (ends), correct, rows; exact matches and token F1, summed over rows, as SQuAD 1.1 has them."""
        assert scores.outputs is not None
        pairs = [
            (best(item.gold, logits), item.gold.answer) for item, logits in zip(items, scores.outputs, strict=True)
        ]
        return {
            "nats": float(scores.nats.sum()),
            "items": int(scores.counts.sum()),
            "correct": int(scores.correct.sum()),
            "rows": len(items),
            "exact": sum(normal(said) == normal(truth) for said, truth in pairs),
            "overlap": float(sum(overlap(said, truth) for said, truth in pairs)),
        }


def _item(row: Row, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]) -> Item:
    coded = tokenizer([row["question"]], [row["context"]], return_offsets_mapping=True, **options)
    spans = coded["offset_mapping"][0]
    inside = [place for place, text in enumerate(coded.sequence_ids(0)) if text == 1]
    own = row["answer"].strip()
    start = row["start"] + row["answer"].index(own)
    end = start + len(own)
    ours = [place for place in inside if spans[place][0] < end and spans[place][1] > start]
    whole = bool(ours) and spans[ours[-1]][1] >= end
    (item,) = items_of(coded, [torch.tensor([ours[0], ours[-1]] if whole else [], dtype=torch.int64)])
    first = inside[0] if inside else 0
    return replace(item, gold=Gold(row["answer"], row["context"], first, tuple(tuple(spans[p]) for p in inside)))


def best(gold: Gold, logits: np.ndarray) -> str:
    """The most likely stretch of the context; logits: (2, length) of start and end."""
    tokens = slice(gold.first, gold.first + len(gold.spans))
    starts, ends = logits[0, tokens], logits[1, tokens]
    if not len(starts):
        return ""
    both = starts[:, None] + ends[None, :]
    ahead = np.arange(len(ends))[None, :] - np.arange(len(starts))[:, None]
    both = np.where((ahead >= 0) & (ahead < LONGEST), both, -np.inf)
    start, end = np.unravel_index(int(both.argmax()), both.shape)
    return gold.context[gold.spans[start][0] : gold.spans[end][1]]


def normal(text: str) -> str:
    """Lower case without punctuation, articles and surplus blanks (Rajpurkar et al. 2016, arXiv 1606.05250)."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def overlap(said: str, truth: str) -> float:
    """F1 of the two texts' words."""
    ours, theirs = normal(said).split(), normal(truth).split()
    same = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * same / (len(ours) + len(theirs)) if same else 0.0
