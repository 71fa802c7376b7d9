"""What a unit's model writes for its validation rows: the likeliest token each time, by transformers' own `generate`.

A step writes at most `CHUNK` tokens of a few rows, so that the process gives signs of life and other units their turn.
Rows that are written together have as much left to write, each up to its own bound: a row's text does not depend on
which rows stand beside it, beyond rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from orchestrator.contract import Generation
from trial_worker.engine.base import Base
from trial_worker.engine.stream import speaking
from trial_worker.tasks.interface import Item, Wanted, padded

CHUNK = 32


@dataclass(frozen=True)
class Step:
    """Rows to go on with, and how many tokens of each at most."""

    rows: tuple[int, ...]
    tokens: int


@dataclass
class Answering:
    """One evaluation of one unit. items: by row. todo: rows that are not finished. written: the tokens so far.

    seconds: of the device, as whoever steps it says. A row without a text to be compared with is no part of it.
    """

    base: Base
    asked: Generation
    items: Mapping[int, Item]
    todo: list[int] = field(init=False)
    written: dict[int, list[int]] = field(init=False)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.written = {row: [] for row, item in self.items.items() if item.gold is not None}
        self.todo = [row for row in self.written if self._left(row) > 0]
        self._ends = {item.gold.end for item in self.items.values() if item.gold is not None} - {None}
        own = self.base.model.generation_config.eos_token_id
        self._ends |= {*own} if isinstance(own, list) else {own} - {None}

    def next(self, most_tokens: int, most_rows: int) -> Step:
        """What to write now: the longest rows first, as many as fit, at least one."""
        kinds = {row: (len(self.written[row]), min(CHUNK, self._left(row))) for row in self.todo}
        kind = min(kinds.values())
        rows = sorted((row for row in self.todo if kinds[row] == kind), key=lambda row: (-self._length(row), row))
        most = min(most_rows, max(most_tokens // (self._length(rows[0]) + kind[1]), 1))
        return Step(tuple(rows[:most]), kind[1])

    def cost(self, step: Step) -> int:
        """Tokens that are held at once."""
        return sum(self._length(row) + step.tokens for row in step.rows)

    @torch.inference_mode()
    def write(self, step: Step, slot: int) -> None:
        """Go on with these rows, by the adapter of a slot that is in the model."""
        with speaking(slot):
            new = self._generate(step)
        for row, ids in zip(step.rows, new, strict=True):
            end = next((place for place, token in enumerate(ids) if token in self._ends), None)
            self.written[row] += ids[:end]
            if end is not None or not self._left(row):
                self.todo.remove(row)

    def tallies(self) -> dict[str, Any]:
        """Sums over the rows: see `tallies`."""
        return tallies(self.asked.metrics, self.texts(), {row: self.items[row].gold.text for row in self.written})

    def texts(self) -> dict[int, str]:
        """row -> what was written."""
        decode = self.base.tokenizer.decode
        return {row: str(decode(ids, skip_special_tokens=True)) for row, ids in self.written.items()}

    def _length(self, row: int) -> int:
        """Tokens that are there already."""
        return len(self._prompt(row)) + len(self.written[row])

    def _prompt(self, row: int) -> Tensor:
        item, gold = self.items[row], self.items[row].gold
        assert isinstance(gold, Wanted)
        return item.ids if item.decoded else item.ids[: gold.prompt]

    def _left(self, row: int) -> int:
        """Tokens that may still be written: as many as are asked for, and the model has positions for."""
        before = 1 if self.items[row].decoded else len(self._prompt(row))
        return min(self.asked.max_new_tokens, self.base.limit - before) - len(self.written[row])

    def _generate(self, step: Step) -> list[list[int]]:
        model, device = self.base.model, self.base.device
        prompts = [self._prompt(row) for row in step.rows]
        begun = [torch.tensor(self.written[row], dtype=torch.int64) for row in step.rows]
        pad = int(self.base.tokenizer.pad_token_id or 0)
        inputs: dict[str, Tensor] = {}
        if decoded := self.items[step.rows[0]].decoded:
            start = model.generation_config.decoder_start_token_id
            start = model.config.decoder_start_token_id if start is None else start
            inputs["decoder_input_ids"] = torch.stack([torch.cat([torch.tensor([start]), ids]) for ids in begun])
        else:
            prompts = [torch.cat(both) for both in zip(prompts, begun, strict=True)]
        inputs["input_ids"], inputs["attention_mask"] = padded(prompts, pad, left=not decoded)
        out = model.generate(  # type: ignore[operator]
            **{name: tensor.to(device) for name, tensor in inputs.items()},
            do_sample=False,
            num_beams=1,
            use_cache=True,
            max_new_tokens=step.tokens,
            eos_token_id=sorted(self._ends),
            pad_token_id=pad,
        )
        before = inputs["decoder_input_ids" if decoded else "input_ids"].shape[1]
        new: list[list[int]] = out[:, before:].tolist()
        return new


def tallies(metrics: Sequence[str], said: Mapping[int, str], wanted: Mapping[int, str]) -> dict[str, Any]:
    """Additive sums over rows, white space at both ends of a text aside.

    answered: rows. matches: rows where both texts are equal. chrf: sacrebleu's counts, see `objective.chrf`.
    """
    pairs = [(said[row].strip(), wanted[row].strip()) for row in wanted]
    found: dict[str, Any] = {"answered": len(pairs)}
    if "exact_match" in metrics:
        found["matches"] = sum(left == right for left, right in pairs)
    if "chrf" in metrics:
        found["chrf"] = chrf_counts(pairs)
    return found


def chrf_counts(pairs: Sequence[tuple[str, str]]) -> list[int]:
    """What sacrebleu counts of (written, wanted) texts, summed over them: (6 orders x 3,)."""
    from sacrebleu.metrics.chrf import CHRF  # a tenth of a second, which only studies of texts that are written need

    scorer = CHRF()
    counts = [0] * (3 * scorer.order)
    if pairs:
        written, wanted = zip(*pairs, strict=True)
        for row in scorer._extract_corpus_statistics(list(written), [list(wanted)]):
            counts = [total + own for total, own in zip(counts, row, strict=True)]
    return counts
