"""Which rows are alike, so that every fold gets its share of each kind (pure)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator import forms

BINS = 10  # of numbers, at most
OFTEN = 10  # rows that make a kind of their own


def strata(task: str, rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...] | None:
    """A name for each row's kind; None where folds are not stratified.

    The class; the labels of a row together, or its rarest one where so few rows have the same; one of up to ten
    equally large ranges of a number.
    """
    if task in forms.ONE_CLASS:
        return tuple(row["label"] for row in rows)
    if task == "multi_label":
        return _by_labels([tuple(row["labels"]) for row in rows])
    if task == "regression":
        return _by_quantile([row["number"] for row in rows])
    return None


def _by_labels(rows: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    together = Counter(rows)
    each = Counter(label for labels in rows for label in labels)
    kinds = []
    for labels in rows:
        if together[labels] >= OFTEN or not labels:
            kinds.append(f"all of {list(labels)}")
        else:
            kinds.append(f"has {min(labels, key=lambda label: (each[label], label))}")
    return tuple(kinds)


def _by_quantile(numbers: Sequence[float]) -> tuple[str, ...]:
    bins = max(1, min(BINS, len(numbers) // OFTEN))
    kinds = [""] * len(numbers)
    for rank, row in enumerate(sorted(range(len(numbers)), key=lambda row: (numbers[row], row))):
        kinds[row] = str(rank * bins // len(numbers))
    return tuple(kinds)
