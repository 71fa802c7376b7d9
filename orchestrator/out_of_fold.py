"""What a study's models said of rows that they had not been trained on, from its database alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, text

from orchestrator import queries
from orchestrator.records import StudyRecord


@dataclass(frozen=True)
class Validated:
    """A finished fold of a trial, at the epoch that counts.

    rows: (validated,) int64, their numbers in the snapshot. nats, counts: (validated,) float32, of each row the sum and
    how many items it has. logits: (validated, classes) float16 of tasks with rows of classes, where they were kept.
    """

    trial: int
    repeat: int
    fold: int
    rows: np.ndarray
    nats: np.ndarray
    counts: np.ndarray
    logits: np.ndarray | None


def read(connection: Connection, record: StudyRecord, trials: Sequence[int]) -> list[Validated]:
    """All finished folds of these trials, in the order of (trial, repeat, fold)."""
    counted = queries.fold_results(connection, record.id, trials)
    found = connection.execute(
        text(
            "SELECT w.trial, u.repeat, u.fold, r.nats, r.counts, r.logits FROM unnest(CAST(:trials AS bigint[]), "
            "CAST(:repeats AS integer[]), CAST(:folds AS integer[]), CAST(:epochs AS integer[])) "
            "AS w(trial, repeat, fold, epoch) JOIN trial t ON t.id = w.trial "
            "JOIN unit u ON u.trial = coalesce(t.run, t.id) AND u.repeat = w.repeat AND u.fold = w.fold "
            "JOIN result r ON r.unit = u.id AND r.epoch = w.epoch ORDER BY w.trial, u.repeat, u.fold"
        ),
        {
            "trials": [each.trial for each in counted],
            "repeats": [each.repeat for each in counted],
            "folds": [each.fold for each in counted],
            "epochs": [each.epoch for each in counted],
        },
    )
    return [_validated(record, **row) for row in found.mappings()]


def by_row(folds: Iterable[Validated], rows: int) -> np.ndarray:
    """(rows, 2): nats and items of each row of the snapshot, summed over folds and repeats; 0 of rows in none."""
    sums = np.zeros((rows, 2))
    for each in folds:
        sums[each.rows] += np.stack([each.nats, each.counts], 1)
    return sums


def _validated(record: StudyRecord, *, trial: int, repeat: int, fold: int, **stored: Any) -> Validated:
    logits = None
    if stored["logits"] is not None and record.labels:
        logits = np.frombuffer(bytes(stored["logits"]), "<f2").reshape(-1, len(record.labels))
    return Validated(
        trial=trial,
        repeat=repeat,
        fold=fold,
        rows=np.asarray(record.plan.split(repeat, fold)[1]),
        nats=np.frombuffer(bytes(stored["nats"]), "<f4"),
        counts=np.frombuffer(bytes(stored["counts"]), "<f4"),
        logits=logits,
    )
