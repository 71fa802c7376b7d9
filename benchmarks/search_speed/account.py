"""What a form says of its run, and how it counts. Standard library only."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Spent:
    """Seconds of this process: cpu is user and system time of all its threads and of children it has waited for."""

    cpu: float
    wall: float

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.cpu + other.cpu, self.wall + other.wall)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.cpu - other.cpu, self.wall - other.wall)


BEGAN = time.monotonic()


def now() -> Spent:
    """Seconds since the process began (cpu) and since this module was loaded (wall)."""
    return Spent(sum(os.times()[:4]), time.monotonic() - BEGAN)


@dataclass(frozen=True, kw_only=True)
class UnitResult:
    """One (trial, fold) on its validation rows. loss is None where it diverged."""

    trial: int
    fold: int
    nats: float | None
    items: int
    correct: int
    cpu: float | None = None  # None: units shared the process

    @property
    def loss(self) -> float | None:
        return None if self.nats is None else self.nats / self.items


@dataclass
class Tokens:
    """Tokens that the model was given, by purpose; computed ones include padding."""

    train_real: int = 0
    train_computed: int = 0
    evaluation_real: int = 0
    evaluation_computed: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    def saw(self, computed: int, training: bool) -> None:
        if training:
            self.train_computed += computed
        else:
            self.evaluation_computed += computed

    def worked(self, lengths: Sequence[int], train: Sequence[int], evaluated: Sequence[int], epochs: int) -> None:
        """So many epochs over these rows."""
        self.train_real += epochs * sum(lengths[row] for row in train)
        self.evaluation_real += epochs * sum(lengths[row] for row in evaluated)


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The trial with the best cross-validated loss, and what the mean of its fold models says of the test part."""

    trial: int
    cv_loss: float
    test_loss: float
    test_accuracy: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of one form. start: until the model (where it is kept) and the tokens are there; search: the rest."""

    form: str
    device: str
    start: Spent
    search: Spent
    units: Sequence[UnitResult]
    tokens: Tokens
    winner: Winner
    stopped: Mapping[int, int] = field(default_factory=dict)
    slots: int = 1
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def from_json(raw: Mapping[str, Any]) -> Run:
    """The run that `to_json` wrote."""
    built = {
        "start": Spent(**raw["start"]),
        "search": Spent(**raw["search"]),
        "units": tuple(UnitResult(**unit) for unit in raw["units"]),
        "tokens": Tokens(**raw["tokens"]),
        "winner": Winner(**raw["winner"]),
        "stopped": {int(trial): folds for trial, folds in raw["stopped"].items()},
    }
    return Run(**{**raw, **built})


def cv_losses(units: Sequence[UnitResult]) -> dict[int, float | None]:
    """Nats over rows of all units of each trial; None for a trial with a unit that diverged."""
    by_trial: dict[int, list[UnitResult]] = {}
    for unit in units:
        by_trial.setdefault(unit.trial, []).append(unit)
    return {
        trial: None
        if any(unit.nats is None for unit in parts)
        else sum(unit.nats or 0.0 for unit in parts) / sum(unit.items for unit in parts)
        for trial, parts in by_trial.items()
    }


def best(units: Sequence[UnitResult], stopped: Mapping[int, int]) -> tuple[int, float]:
    """(trial, cross-validated loss) of the winner among the trials that got all their folds.

    Raises:
        ValueError: there is none.
    """
    losses = {t: loss for t, loss in cv_losses(units).items() if loss is not None and t not in stopped}
    trial = min(losses, key=lambda one: losses[one])
    return trial, losses[trial]
