"""The fold plan: which rows validate which fold, the same for every trial of a study (pure, deterministic)."""

from __future__ import annotations

import warnings
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
        if len(counts) < 2:
            errors.append(f"classification needs at least 2 classes — got only {next(iter(counts), None)!r}")
        rare = sorted(label for label, count in counts.items() if count < folds)
        if rare and len(counts) >= 2:
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
    from sklearn import model_selection

    options = {"n_splits": folds, "shuffle": True, "random_state": seed}
    stratify, together = labels is not None, groups is not None
    name = f"{'Stratified' if stratify else ''}{'Group' if together else ''}KFold"
    splitter = getattr(model_selection, name)(**options)
    if stratify and not together and min(Counter(labels).values()) < folds:
        splitter = model_selection.StratifiedGroupKFold(**options)  # tolerates classes rarer than folds
        groups = [str(row) for row in range(rows)]
    row_folds = [-1] * rows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # rare classes: `problems` has said it in our words
        for fold, (_, validation) in enumerate(splitter.split([0] * rows, labels, groups)):
            for row in validation:
                row_folds[int(row)] = fold
    return tuple(row_folds)
