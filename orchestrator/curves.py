"""Learning curves: training and validation loss by epoch, the gap between them, where overfitting begins (pure).

Training loss is the mean in nats per item, as validation loss, over the rows that an epoch trained on: made ones
included, each under the weights before its own step, with the dropout and the noise of training. What training makes
small instead (label smoothing, mixup, R-Drop, class weights) is no part of it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from orchestrator import objective
from orchestrator.folds import FoldPlan
from orchestrator.objective import Tallies
from orchestrator.records import FoldResult

SHOWN = 12  # epochs in a table for people


@dataclass(frozen=True, kw_only=True)
class FoldCurve:
    """What one unit reported after each epoch. epochs: epoch -> (training loss, None where there is none; tallies)."""

    trial: int
    repeat: int
    fold: int
    done: bool
    epochs: Mapping[int, tuple[float | None, Tallies]]


@dataclass(frozen=True)
class Epoch:
    """Losses in nats per item."""

    epoch: int
    train_loss: float | None
    validation_loss: float

    @property
    def gap(self) -> float | None:
        """Validation loss less training loss."""
        return None if self.train_loss is None else self.validation_loss - self.train_loss


@dataclass(frozen=True)
class Overfitting:
    """After which epoch it began, at which the curve ends, and how far the losses went apart in between, in nats."""

    onset: int
    end: int
    rise: float  # of validation loss
    fall: float  # of training loss


def pooled(folds: Sequence[FoldCurve], plan: FoldPlan) -> list[Epoch]:
    """One curve over the epochs that all folds have, and that have a finite loss.

    Validation loss is over all items of all folds, divided once; training loss is the mean over folds, each by the
    rows that its part of the plan has.
    """
    common = set.intersection(*(set(fold.epochs) for fold in folds)) if folds else set()
    rows = [plan.training_rows(fold.repeat, fold.fold) for fold in folds]
    curve = []
    for epoch in sorted(common):
        trained, tallies = zip(*(fold.epochs[epoch] for fold in folds), strict=True)
        loss = objective.validation_loss(objective.add(tallies))
        if math.isfinite(loss):
            curve.append(Epoch(epoch, _mean(trained, rows), loss))
    return curve


def reported(results: Sequence[FoldResult], folds: Sequence[FoldCurve], plan: FoldPlan) -> Epoch | None:
    """Losses at the epoch that counts for each fold, pooled like an epoch of a curve, named by the last such one.

    results: of finished folds; None without any.
    """
    if not results:
        return None
    learnt = {(fold.repeat, fold.fold): fold.epochs for fold in folds}
    trained = [learnt.get((one.repeat, one.fold), {}).get(one.epoch, (None, {}))[0] for one in results]
    rows = [plan.training_rows(one.repeat, one.fold) for one in results]
    loss = objective.validation_loss(objective.add(one.tallies for one in results))
    return Epoch(max(one.epoch for one in results), _mean(trained, rows), loss) if math.isfinite(loss) else None


def overfitting(curve: Sequence[Epoch]) -> Overfitting | None:
    """Where a curve rises for good while training loss falls; None: nowhere.

    That is after the last epoch of its lowest validation loss: every later one is worse. It must not be the last epoch
    of all, and training loss must be lower at the end than at it. How much of the rise is noise, the rise itself says.
    """
    if not curve:
        return None
    lowest = min(reversed(curve), key=lambda each: each.validation_loss)
    end = curve[-1]
    if lowest.train_loss is None or end.train_loss is None or not end.train_loss < lowest.train_loss:
        return None
    rise = end.validation_loss - lowest.validation_loss
    return Overfitting(lowest.epoch, end.epoch, rise, lowest.train_loss - end.train_loss)


def lowest(fold: FoldCurve) -> tuple[int, float] | None:
    """(epoch, loss) of a fold's lowest validation loss, the earliest of equals; for people: it chose its own items."""
    losses = {epoch: objective.validation_loss(tallies) for epoch, (_, tallies) in fold.epochs.items()}
    finite = [(loss, epoch) for epoch, loss in losses.items() if math.isfinite(loss)]
    return min(finite)[::-1] if finite else None


def thinned(curve: Sequence[Epoch], keep: Collection[int] = (), most: int = SHOWN) -> list[Epoch]:
    """At most `most` epochs of a curve, evenly spaced, its first and last among them; and those to keep."""
    if len(curve) <= most:
        return list(curve)
    places = {round(step * (len(curve) - 1) / (most - 1)) for step in range(most)}
    return [each for place, each in enumerate(curve) if place in places or each.epoch in keep]


def _mean(values: Sequence[float | None], weights: Sequence[int]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(known) < len(values) or not sum(weights):
        return None
    return math.fsum(value * weight for value, weight in zip(known, weights, strict=True)) / sum(weights)
