"""Language modelling: rows `{"text"}`, `{"prompt", "completion"}` or `{"messages": [{"role", "content"}]}`.

Each form becomes a text and the spans of it that are supervised, see `trial_worker.tasks.spans`. A token is
supervised where it ends inside a span; the first token of a row never is, since nothing comes before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from trial_worker.tasks.interface import Item, Row, Scores, Task, Wanted
from trial_worker.tasks.spans import Marked, mark
from trial_worker.tasks.texts import language_tallies


class CausalLm(Task):
    """Next-token prediction; the loss is nats per supervised token."""

    family = "causal"

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[Item]:
        """Items with a target for each supervised token.

        Raises:
            ValueError: a row has none of the three forms, the tokenizer lacks the chat template that `messages`
                need, or it cannot say which characters a token covers.
        """
        if not tokenizer.is_fast:
            raise ValueError("the tokenizer gives no character offsets; a tokenizer.json is needed")
        items = []
        for number, row in enumerate(rows):
            try:
                items.append(_encode(mark(row, tokenizer), tokenizer))
            except ValueError as error:
                raise ValueError(f"row {number}: {error}") from error
        return items

    def shorten(self, item: Item, row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Item:
        """Cut at the right: targets beyond the limit, and their bytes, are not counted."""
        assert item.positions is not None
        assert item.ends is not None
        kept = item.positions < max_length - 1
        ends = item.ends[kept]
        return Item(
            ids=item.ids[:max_length],
            targets=item.targets[kept],
            positions=item.positions[kept],
            size=int(ends.max()) if len(ends) else 0,
            ends=ends,
            gold=item.gold,
        )

    def tallies(self, items: Sequence[Item], scores: Scores) -> dict[str, Any]:
        """nats, items (supervised tokens), correct, rows, and bytes of supervised text."""
        return language_tallies(items, scores)


def _encode(marked: Marked, tokenizer: PreTrainedTokenizerBase) -> Item:
    # verbose=False: rows longer than the model are cut later, a warning for each would be noise
    coded = tokenizer(marked.text, add_special_tokens=marked.add_special, return_offsets_mapping=True, verbose=False)
    ids, ends = list(coded["input_ids"]), [end for _, end in coded["offset_mapping"]]
    learnt = [
        start < end and any(span.start < end <= span.end for span in marked.spans)
        for start, end in coded["offset_mapping"]
    ]
    if marked.close and tokenizer.eos_token_id is not None:
        if not ids or ids[-1] != tokenizer.eos_token_id:
            ids, ends, learnt = [*ids, tokenizer.eos_token_id], [*ends, 0], [*learnt, False]
        ends[-1], learnt[-1] = len(marked.text), True
    if not ids:
        raise ValueError("the row has no tokens")
    positions = [token - 1 for token in range(1, len(ids)) if learnt[token]]
    covered = [_bytes_between(marked, ends[0], ends[position + 1]) for position in positions]
    chosen = torch.tensor(positions, dtype=torch.int64)
    sequence = torch.tensor(ids, dtype=torch.int64)
    return Item(
        ids=sequence,
        targets=sequence[chosen + 1],
        positions=chosen,
        size=max(covered, default=0),
        ends=torch.tensor(covered, dtype=torch.int64),
        gold=None if marked.wanted is None else _wanted(marked.wanted, marked, ids, coded["offset_mapping"], tokenizer),
    )


def _wanted(
    text: str,
    marked: Marked,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    tokenizer: PreTrainedTokenizerBase,
) -> Wanted:
    """The last span: an earlier answer of the same conversation is part of what is asked."""
    last = marked.spans[-1]
    inside = [place for place, (start, end) in enumerate(offsets) if start < end and last.start < end <= last.end]
    if not inside:
        return Wanted(text, len(offsets), tokenizer.eos_token_id)
    end = tokenizer.eos_token_id if marked.close else ids[inside[-1]]
    closes = end == tokenizer.eos_token_id or end in tokenizer.added_tokens_decoder
    return Wanted(text, max(inside[0], 1), end if closes else None)


def _bytes_between(marked: Marked, start: int, end: int) -> int:
    """UTF-8 bytes of the supervised text between two characters; what a template adds is none of it."""
    return sum(
        len(marked.text[max(span.text_start, start) : min(span.text_end, end)].encode()) for span in marked.spans
    )
