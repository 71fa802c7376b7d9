"""One run for every number of epochs (`share_epochs`): which of its epochs counts (pure).

A run of more epochs passes through all that shorter ones would be, where its learning rate at a step does not depend on
the number of steps. One epoch is chosen for all folds of a trial, from the objective pooled over them: the best epoch
of each fold by itself would be chosen on the very items that score it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from orchestrator import objective
from orchestrator.contract import Settings, canonical
from orchestrator.objective import MAXIMIZE, Tallies
from orchestrator.space import Params


def shareable(settings: Settings) -> bool:
    """Whether a run with these settings is the beginning of every longer one."""
    return settings.lr_schedule == "constant" and (settings.warmup_steps > 0 or settings.warmup_ratio == 0)


def families(points: Iterable[Params]) -> list[Params]:
    """A grid's points with those together that differ in epochs alone, of each such family the longest first."""
    found: dict[str, list[Params]] = {}
    for point in points:
        found.setdefault(canonical({**point, "epochs": 0}), []).append(point)
    return [point for family in found.values() for point in sorted(family, key=lambda each: -each["epochs"])]


def pooled_curve(name: str, folds: Sequence[Mapping[int, Tallies]]) -> dict[int, float]:
    """Epoch -> the objective pooled over all folds, for epochs that all of them have. folds: epoch -> tallies."""
    common = set.intersection(*(set(fold) for fold in folds)) if folds else set()
    return {epoch: objective.metrics(objective.add(fold[epoch] for fold in folds))[name] for epoch in sorted(common)}


def best_epoch(name: str, folds: Sequence[Mapping[int, Tallies]], allowed: Collection[int]) -> int | None:
    """The epoch of the best pooled objective, the earliest among equals; None: none has a finite one."""
    sign = -1.0 if MAXIMIZE[name] else 1.0
    curve = {epoch: sign * value for epoch, value in pooled_curve(name, folds).items() if math.isfinite(value)}
    return min((epoch for epoch in curve if epoch in allowed), key=lambda epoch: (curve[epoch], epoch), default=None)
