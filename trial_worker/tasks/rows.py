"""A study's rows: read once, tokenised once, kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from trial_worker.tasks.interface import Item, Row, Task


class Rows:
    """Tokenised rows of one snapshot, by row number.

    Raises:
        ValueError: a row is not of the task's form.
    """

    def __init__(self, task: Task, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> None:
        self.task = task
        self._rows = rows
        self._tokenizer = tokenizer
        self._whole = task.encode(rows, tokenizer)
        self._cut: dict[int, list[Item]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def items(self, max_length: int) -> list[Item]:
        """All rows, each of at most `max_length` tokens."""
        if max_length not in self._cut:
            self._cut[max_length] = [
                item if item.longest <= max_length else self.task.shorten(item, row, self._tokenizer, max_length)
                for item, row in zip(self._whole, self._rows, strict=True)
            ]
        return self._cut[max_length]

    @property
    def longest(self) -> int:
        """Tokens of the longest row before any cut."""
        return max((item.longest for item in self._whole), default=0)


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
