"""The fold plan: which rows validate which fold, the same for every trial of a study (pure, deterministic)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.contract import digest


@dataclass(frozen=True)
class FoldPlan:
    """assignment[repeat][row] is the fold in which the row is validated."""

    folds: int
    assignment: tuple[tuple[int, ...], ...]

    @property
    def units(self) -> tuple[tuple[int, int], ...]:
        """Every (repeat, fold), in the order in which they are trained."""
        return tuple((repeat, fold) for repeat in range(len(self.assignment)) for fold in range(self.folds))

    def split(self, repeat: int, fold: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(training rows, validation rows) of one fold."""
        row_folds = self.assignment[repeat]
        train = tuple(row for row, at in enumerate(row_folds) if at != fold)
        return train, tuple(row for row, at in enumerate(row_folds) if at == fold)

    def training_rows(self, repeat: int, fold: int) -> int:
        """How many rows train in one fold."""
        row_folds = self.assignment[repeat]
        return len(row_folds) - row_folds.count(fold)

    def digest(self) -> str:
        """sha256 of the assignment."""
        return digest([list(row_folds) for row_folds in self.assignment])


def problems(
    rows: int, folds: int, labels: Sequence[str] | None, groups: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """(errors, warnings) about splitting these rows into so many folds. Needs no library."""
    errors, cautions = [], []
    if folds > rows:
        errors.append(f"folds: {folds} but only {rows} rows")
    if groups is not None and len(set(groups)) < folds:
        errors.append(f"folds: {folds} but only {len(set(groups))} groups of rows that belong together")
    if labels is not None:
        counts = Counter(labels)
        rare = sorted(label for label, count in counts.items() if count < folds)
        if rare:
            shown = ", ".join(f"{label!r} ({counts[label]})" for label in rare[:5])
            cautions.append(
                f"{len(rare)} of {len(counts)} classes have fewer rows than there are folds: {shown}; "
                "in some folds they are never trained or never validated"
            )
    return errors, cautions


def plan(
    rows: int,
    folds: int,
    *,
    repeats: int = 1,
    seed: int = 0,
    labels: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> FoldPlan:
    """Split rows into folds, `repeats` times over.

    labels: keep the share of each label in every fold. groups: rows of one group never stand on both sides.

    Raises:
        ValueError: more folds than rows or groups.
    """
    errors, _ = problems(rows, folds, None, groups)
    if errors:
        raise ValueError("; ".join(errors))
    return FoldPlan(folds, tuple(_assign(rows, folds, seed + repeat, labels, groups) for repeat in range(repeats)))


def _assign(
    rows: int, folds: int, seed: int, labels: Sequence[str] | None, groups: Sequence[str] | None
) -> tuple[int, ...]:
    if labels is not None and (groups is not None or min(Counter(labels).values()) < folds):
        return _deal(folds, seed, labels, groups or [str(row) for row in range(rows)])
    from sklearn import model_selection

    kinds = {(True, False): "StratifiedKFold", (False, True): "GroupKFold", (False, False): "KFold"}
    name = kinds[labels is not None, groups is not None]
    splitter = getattr(model_selection, name)(n_splits=folds, shuffle=True, random_state=seed)
    row_folds = [-1] * rows
    for fold, (_, validation) in enumerate(splitter.split([0] * rows, labels, groups)):
        for row in validation:
            row_folds[int(row)] = fold
    return tuple(row_folds)


def _deal(folds: int, seed: int, labels: Sequence[str], groups: Sequence[str]) -> tuple[int, ...]:
    """Stratified folds of whole groups, large groups first, each to the fold that lacks its labels most.

    scikit-learn's StratifiedGroupKFold refuses data in which every class is rarer than folds, and may leave a fold
    without any row. Here no fold is empty, and for groups of one row each label's count differs by at most one.
    """
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    order = sorted(members.values())
    random.Random(seed).shuffle(order)
    order.sort(key=lambda rows: (-len(rows), sorted(labels[row] for row in rows)))
    totals = Counter(labels)
    held: list[Counter[str]] = [Counter() for _ in range(folds)]
    row_folds = [-1] * len(labels)
    for index, rows in enumerate(order):
        added = Counter(labels[row] for row in rows)
        empty = [fold for fold in range(folds) if not held[fold]]
        allowed = empty if len(order) - index <= len(empty) else range(folds)
        best = min(allowed, key=lambda fold: _crowd(held[fold], added, totals))
        held[best] += added
        for row in rows:
            row_folds[row] = best
    return tuple(row_folds)


def _crowd(held: Counter[str], added: Counter[str], totals: Counter[str]) -> tuple[float, int]:
    """By how much these rows would raise the fold's sum of squared label shares; then the fold's size."""
    squares = sum(count * (2 * held[label] + count) / totals[label] for label, count in added.items())
    return round(squares, 9), held.total()
