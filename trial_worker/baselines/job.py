"""What a baseline is given, and what it gives."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np

from orchestrator.contract import TrainUnit
from trial_worker.engine.base import Base
from trial_worker.tasks.interface import Item, Row, Scores
from trial_worker.tasks.rows import Rows

TOKENS = 2048  # padded, computed in one go
Run = Generator[None, None, Scores]  # pauses, then the scores of the unit's validation rows


class NotApplicable(Exception):
    """This model or these rows allow no such baseline; the message says why."""


@dataclass(frozen=True)
class Job:
    """One fold of a baseline.

    shots, template: as the study's `baselines`. embeddings: row number -> (hidden,) float32, of this base and these
    rows, computed once for all folds.
    """

    unit: TrainUnit
    base: Base
    rows: Rows
    shots: int
    template: str
    embeddings: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def classes(self) -> int:
        return len(self.rows.task.labels)

    @property
    def items(self) -> Sequence[Item]:
        """All rows, as long as the model and the settings admit."""
        return self.rows.items(min(self.unit.settings.max_length, self.base.limit))

    def texts(self, numbers: Sequence[int]) -> list[str]:
        """Of each row; both texts of a pair, one behind the other."""
        rows = [self.rows.raw[number] for number in numbers]
        return [" ".join(str(row[name]) for name in ("text", "text_pair") if name in row) for row in rows]

    def truth(self, numbers: Sequence[int]) -> np.ndarray:
        """(rows,) int64, the class of each."""
        index = {label: place for place, label in enumerate(self.rows.task.labels)}
        return np.array([index[self.rows.raw[number]["label"]] for number in numbers], dtype=np.int64)

    def row(self, number: int) -> Row:
        return self.rows.raw[number]

    def shown(self) -> list[int]:
        """Training rows to show: `shots` of each class, or `shots` in all, drawn by the unit's seed."""
        drawn = np.random.default_rng(self.unit.seed).permutation(np.array(self.unit.train)).tolist()
        if not self.rows.task.labels:
            return [int(number) for number in drawn[: self.shots]]
        left = dict.fromkeys(self.rows.task.labels, self.shots)
        chosen = []
        for number in drawn:
            label = self.rows.raw[number]["label"]
            if left[label]:
                left[label] -= 1
                chosen.append(int(number))
        return chosen


def too_long(tokens: int, limit: int) -> NotApplicable:
    return NotApplicable(f"a prompt has {tokens} tokens, and the model reaches {limit}: use fewer shots")


def class_scores(likely: np.ndarray, truth: np.ndarray) -> Scores:
    """Of log-probabilities (rows, classes)."""
    said = likely.argmax(-1)
    return Scores(
        nats=-likely[np.arange(len(truth)), truth].astype(np.float64),
        counts=np.ones(len(truth), dtype=np.int64),
        correct=(said == truth).astype(np.int64),
        logits=likely.astype(np.float32),
    )
