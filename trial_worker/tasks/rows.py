"""A study's rows: read once, tokenised once, kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from trial_worker.tasks.interface import Item, Row, Task


class Rows:
    """Tokenised rows of one snapshot, by row number, and behind them those of a pool.

    Raises:
        ValueError: a row is not of the task's form.
    """

    def __init__(
        self, task: Task, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, pool: Sequence[Row] = ()
    ) -> None:
        self.task = task
        self.pool = range(len(rows), len(rows) + len(pool))  # numbers of the rows without labels
        self._rows = [*rows, *({**row, "label": task.labels[0]} for row in pool)]
        self._tokenizer = tokenizer
        self._whole = task.encode(self._rows, tokenizer)
        self._cut: dict[int, list[Item]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def unlabelled(self, number: int) -> Row:
        """A row of the pool as it was given; among the items each has some class, which means nothing."""
        return {name: value for name, value in self._rows[number].items() if name != "label"}

    @property
    def raw(self) -> Sequence[Row]:
        """The rows as the snapshot has them, by row number; behind them the pool's, with a class that means nothing."""
        return self._rows

    def items(self, max_length: int) -> list[Item]:
        """All rows, each of at most `max_length` tokens."""
        if max_length not in self._cut:
            self._cut[max_length] = self._shortened(self._whole, self._rows, max_length)
        return self._cut[max_length]

    def further(self, rows: Sequence[Row], max_length: int) -> list[Item]:
        """Rows that the snapshot does not have, as `items`; nothing is kept."""
        return self._shortened(self.task.encode(rows, self._tokenizer), rows, max_length)

    def _shortened(self, items: Sequence[Item], rows: Sequence[Row], max_length: int) -> list[Item]:
        return [
            item if item.longest <= max_length else self.task.shorten(item, row, self._tokenizer, max_length)
            for item, row in zip(items, rows, strict=True)
        ]

    @property
    def longest(self) -> int:
        """Tokens of the longest row before any cut, the pool's aside."""
        return max((item.longest for item in self._whole[: self.pool.start]), default=0)


def read_snapshot(path: str | Path) -> list[Row]:
    """The rows of a snapshot's JSONL.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is no JSON object; the message names its number, counted from 1.
    """
    rows: list[Row] = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} of the snapshot is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {number} of the snapshot is not a JSON object")
            rows.append(row)
    return rows
