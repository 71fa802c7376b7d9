"""`foldtune suspects`: rows of a study that are probably labelled wrongly, from its database alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, Engine

from orchestrator import forms, out_of_fold, queries, snapshots, suspects
from orchestrator.database.engine import transaction
from orchestrator.records import StudyRecord
from orchestrator.texts import shown, told

TRIALS = 3  # of the best, whose predictions are averaged: what one model errs in, another may know

# task -> what its logits mean
LIKELY = {**dict.fromkeys(forms.ONE_CLASS, suspects.softmax), "multi_label": suspects.sigmoid}


@dataclass(frozen=True)
class Averaged:
    """What models said of rows that they had not been trained on, averaged over trials and repeats.

    losses: (rows,) nats per item; NaN of a row that was not judged. probabilities: (rows, classes), or None; of several
    labels each by itself.
    """

    losses: np.ndarray
    probabilities: np.ndarray | None


def find(engine: Engine, name: str, most: int) -> dict[str, Any] | None:
    """`suspects --json`, at most so many rows; None while no trial is complete.

    Raises:
        FoldtuneError: no such study, or its rows are nowhere any more.
    """
    with transaction(engine) as connection:
        record = queries.study(connection, name)
        trials = queries.best_trials(connection, record.id, TRIALS, maximize=record.spec.maximize)
        if not trials:
            return None
        seen = averaged(connection, record, [trial.id for trial in trials])
    rows = [json.loads(line) for line in snapshots.content(engine, record, record.snapshot).split(b"\n") if line]
    found = _suspects(record, rows, seen)
    return {
        "study": name,
        "task": record.spec.task,
        "trials": [trial.name for trial in trials],
        "rows": len(rows),
        "judged_by": "losses" if seen.probabilities is None else "classes",
        "count": len(found),
        "suspects": [_described(record, rows, seen, each) for each in found[:most]],
    }


def averaged(connection: Connection, record: StudyRecord, trials: Sequence[int]) -> Averaged:
    """Of these trials' finished folds, at the epoch that counts."""
    rows, classes = len(record.plan.assignment[0]), len(record.labels)
    likely, times = np.zeros((rows, classes)), np.zeros(rows)
    folds = out_of_fold.read(connection, record, trials)
    sums, counts = out_of_fold.by_row(folds, rows).T
    for one in folds:
        if record.spec.task in LIKELY and one.logits is not None:
            likely[one.rows] += LIKELY[record.spec.task](one.logits)
            times[one.rows] += 1
    losses = np.divide(sums, counts, out=np.full(rows, np.nan), where=counts > 0)
    whole = bool(classes) and bool((times > 0).all())
    return Averaged(losses, likely / times[:, None] if whole else None)


def _suspects(record: StudyRecord, rows: Sequence[Mapping[str, Any]], seen: Averaged) -> list[suspects.Suspect]:
    if seen.probabilities is None:
        return suspects.by_losses(seen.losses)
    numbers = {label: number for number, label in enumerate(record.labels)}
    if record.spec.task == "multi_label":
        given = np.zeros(seen.probabilities.shape, bool)
        for row, own in zip(given, rows, strict=True):
            row[[numbers[label] for label in own["labels"]]] = True
        return suspects.by_labels(seen.probabilities, given)
    return suspects.by_classes(seen.probabilities, np.array([numbers[row["label"]] for row in rows]))


def _described(
    record: StudyRecord, rows: Sequence[Mapping[str, Any]], seen: Averaged, suspect: suspects.Suspect
) -> dict[str, Any]:
    row, at = rows[suspect.row], suspect.row
    likely = None if seen.probabilities is None or suspect.said is None else seen.probabilities[at]
    models_say = given = against = None
    if likely is not None and suspect.said is not None:
        models_say, against = record.labels[suspect.said], float(likely[suspect.said])
        if "labels" not in row:
            given = float(likely[record.labels.index(row["label"])])
        elif models_say in row["labels"]:
            models_say, given, against = f"not {models_say}", against, 1 - against
        else:
            given = 1 - against
    return {
        "row": at + 1,
        "text": shown(row),
        "label": told(row) or None,
        "loss": float(seen.losses[at]),
        "models_say": models_say,
        "probability": given,
        "models_probability": against,
    }
